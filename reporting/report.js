// Collects the chosen corrections and offers them as label-fixes.csv.
const quoted = (text) => /[",\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
const button = document.getElementById("download-fixes");
button.disabled = false;
button.addEventListener("click", () => {
  const rows = ["path,column,value"];
  for (const box of document.querySelectorAll("input[data-column]:checked")) {
    const years = box.closest("div").querySelector("input[type=number]");
    const value = years ? years.value : box.dataset.value;
    if (value) rows.push([box.dataset.path, box.dataset.column, value].map(quoted).join(","));
  }
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([rows.join("\n") + "\n"], {type: "text/csv"}));
  link.download = "label-fixes.csv";
  link.click();
});
