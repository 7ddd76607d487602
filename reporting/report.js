// Collects the chosen corrections and offers them as label-fixes.csv.
const quoted = (text) => /[",\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
const button = document.getElementById("download-fixes");
const corrections = () => [...document.querySelectorAll("input[data-path]")]
  .map((field) => [field, field.checked ? field.dataset.value : field.type === "number" && field.value])
  .filter(([field, value]) => value && field.validity.valid)
  .map(([field, value]) => [field.dataset.path, field.dataset.column, value].map(quoted).join(","));
const update = () => { button.disabled = !corrections().length; };
document.addEventListener("input", update);
update();  // a browser may keep what was chosen before the page was loaded again
button.addEventListener("click", () => {
  const rows = ["path,column,value", ...corrections()];
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([rows.join("\n") + "\n"], {type: "text/csv"}));
  link.download = "label-fixes.csv";
  link.click();
});
