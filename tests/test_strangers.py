"""Files from strangers run no code: what scanners of pickles look for, in every file that a
checkpoint, a run's folder or a prediction consists of.

The pickles are written by hand, opcode by opcode (pickletools lists them). Each would make a file,
the canary, or reach something else of its own. docs/security.md says what is promised.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import checkpoint
import submit_ensemble
import submit_singular
import train
from inference import submission
from runtime.cli import run_script
from runtime.errors import UserError
from tests.helpers import fuzz_readers, support
from training import fold_state

ROOT = Path(__file__).parents[1]
# what a pickle could call: modules that run text, start processes, load libraries, read other
# pickles, open connections or files, or lead to such by way of attributes
GADGETS = """
os system; os popen; os execv; os execvp; os spawnl; os spawnv; os posix_spawn; os startfile
os mkdir; os remove; os unlink; os rename; os rmdir; os removedirs; os putenv; os kill; os _exit
posix system; posix popen; posix mkdir; posix execv; posix fork; nt system; nt startfile
subprocess Popen; subprocess run; subprocess call; subprocess check_call; subprocess check_output
subprocess getoutput; subprocess getstatusoutput; commands getoutput; popen2 popen3
builtins eval; builtins exec; builtins compile; builtins open; builtins __import__
builtins getattr; builtins setattr; builtins delattr; builtins globals; builtins vars
builtins map; builtins filter; builtins breakpoint; builtins input; builtins type
builtins object; __builtin__ eval; __builtin__ execfile; __builtin__ apply; __builtin__ file
__builtin__ getattr; sys exit; sys modules; sys settrace; sys setprofile; sys path; sys _getframe
sys meta_path; runpy run_path; runpy run_module; runpy _run_code; code interact
code InteractiveInterpreter; codeop compile_command; pty spawn; pty fork; imp load_source
imp load_dynamic; importlib import_module; importlib reload
importlib.util spec_from_file_location; importlib.machinery SourceFileLoader
zipimport zipimporter; pkgutil resolve_name; pkgutil get_loader; site main; ensurepip _run_pip
venv create; pip main; pip._internal main; socket socket; socket create_connection
socket create_server; ssl get_server_certificate; urllib.request urlopen
urllib.request urlretrieve; urllib urlopen; http.client HTTPConnection; http.server HTTPServer
httplib HTTPSConnection; requests get; requests.api post; aiohttp request; ftplib FTP
smtplib SMTP; poplib POP3; imaplib IMAP4; telnetlib Telnet; nntplib NNTP
xmlrpc.client ServerProxy; webbrowser open; antigravity geohash; socketserver TCPServer
asyncio run; asyncio create_subprocess_shell; asyncio.unix_events _UnixSubprocessTransport._start
multiprocessing Process; multiprocessing.util spawnv_passfds
concurrent.futures ProcessPoolExecutor; threading Thread; _thread start_new_thread; signal signal
atexit register; weakref finalize; ctypes CDLL; ctypes PyDLL; ctypes.util find_library
_ctypes dlopen; cffi FFI; mmap mmap; pickle loads; pickle load; _pickle loads; pickle Unpickler
cPickle loads; dill loads; cloudpickle loads; joblib load; joblib.numpy_pickle load
marshal loads; shelve open; jsonpickle decode; yaml unsafe_load; copyreg add_extension
copy_reg _reconstructor; types CodeType; types FunctionType; types LambdaType; types MethodType
functools partial; functools reduce; operator attrgetter; operator itemgetter
operator methodcaller; _operator attrgetter; itertools starmap; collections namedtuple
inspect getattr_static; gc get_objects; gc get_referrers; timeit timeit; timeit main
cProfile run; cProfile runctx; profile run; profile Profile.runctx; pdb run; pdb Pdb
pdb set_trace; bdb Bdb.run; trace Trace; doctest debug_script; doctest testfile; unittest main
test.support.script_helper run_python_until_end; pydoc locate; pydoc pipepager
pydoc tempfilepager; pydoc render_doc; lib2to3.pgen2.grammar Grammar.loadpickle
lib2to3.pgen2.pgen ParserGenerator.make_label; idlelib.run Executive.runcode
idlelib.pyshell ModifiedInterpreter.runcode; idlelib.debugobj ObjectTreeItem.SetText
idlelib.autocomplete AutoComplete.get_entity; idlelib.calltip get_entity
logging.config dictConfig; logging.config listen; logging FileHandler; distutils.spawn spawn
distutils.file_util write_file; distutils.core run_setup; setuptools setup; platform popen
platform _syscmd_ver; uuid _get_command_stdout; _aix_support _read_cmd_output
_osx_support _read_output; _pyrepl.pager pipe_pager; this s; nturl2path url2pathname
shutil rmtree; shutil copy; shutil move; shutil unpack_archive; shutil which; tempfile mkstemp
pathlib Path; pathlib PosixPath; pathlib Path.write_text; io open; io FileIO; _io FileIO
codecs open; fileinput input; linecache getlines; tarfile open; zipfile ZipFile; sqlite3 connect
glob glob; argparse FileType; argparse ArgumentParser; argparse _sys.exit
argparse Namespace.__init__; numpy load; numpy loads; numpy fromfile; numpy memmap
numpy genfromtxt; numpy testing.runstring; numpy.testing._private.utils runstring
numpy.f2py.crackfortran myeval; numpy.f2py main; numpy.f2py.crackfortran getlincoef
numpy.f2py.crackfortran param_eval; numpy.ctypeslib load_library
numpy.distutils.exec_command exec_command; numpy.lib.format read_array; numpy.lib.npyio load
numpy.core.multiarray fromfile; numpy.ma.core loads; scipy.io loadmat; pandas read_pickle
pandas eval; pandas.io.pickle read_pickle; pandas.core.computation.eval eval; PIL.ImageMath eval
PIL.ImageShow register; matplotlib.texmanager TexManager; jinja2 Template
jinja2.sandbox Environment; sklearn.utils._testing run; sklearn.externals joblib.load
tqdm.contrib.discord tqdm; torch load; torch.serialization load
torch.serialization add_safe_globals; torch jit.load; torch.jit load
torch.jit._serialization load; torch.package PackageImporter; torch compile; torch.hub load
torch.hub load_state_dict_from_url; torch.hub download_url_to_file; torch.hub _load_local
torch.utils.model_zoo load_url; torch.utils.cpp_extension load
torch.utils.cpp_extension load_inline; torch.utils.collect_env run
torch.utils._config_module ConfigModule.load_config; torch.utils._config_module load_config
torch.utils.data.datapipes.utils.decoder basichandlers
torch.utils.bottleneck.__main__ run_cprofile; torch.utils.bottleneck.__main__ run_autograd_prof
torch.fx.experimental.symbolic_shapes ShapeEnv.evaluate_guards_expression
torch.storage _load_from_bytes; torch.classes load_library; torch.ops load_library
torch._ops _Ops.load_library; torch._inductor.codecache compile_file
torch._inductor.codecache CppCodeCache.load; torch._dynamo.guards GuardBuilder.get
torch.distributed.launch main; torch.multiprocessing spawn; torch.onnx export
torch.cuda.memory _snapshot; torch.testing._internal.common_utils run_tests
torch.distributed.elastic.multiprocessing start_processes
torch.fx.graph_module _exec_with_source; torch.autograd.profiler profile; torch.export load
torch.nn Module; torch.nn Module.load_state_dict; torchvision.datasets.utils download_url
torchvision.models get_model; efficientnet_pytorch EfficientNet.from_pretrained
timm create_model; timm.models.helpers load_custom_pretrained; huggingface_hub hf_hub_download
transformers AutoModel.from_pretrained; train main; checkpoint load_checkpoint
runtime.files atomic_write; registries import_target; tests.test_strangers ROOT
"""
NAMES = [tuple(entry.split()) for entry in re.split(r"[;\n]", GADGETS) if entry.strip()]


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def short(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


# how a pickle calls a function of a module with one text: (module, name, text) -> opcodes
CALLS: dict[str, Callable[[str, str, str], bytes]] = {
    "GLOBAL REDUCE": lambda m, n, t: f"c{m}\n{n}\n".encode() + text(t) + b"\x85R",
    "STACK_GLOBAL REDUCE": lambda m, n, t: short(m) + short(n) + b"\x93" + text(t) + b"\x85R",
    "INST": lambda m, n, t: b"(" + text(t) + f"i{m}\n{n}\n".encode(),
    "OBJ": lambda m, n, t: b"(" + f"c{m}\n{n}\n".encode() + text(t) + b"o",
    "NEWOBJ": lambda m, n, t: f"c{m}\n{n}\n".encode() + text(t) + b"\x85\x81",
    "NEWOBJ_EX": lambda m, n, t: f"c{m}\n{n}\n".encode() + text(t) + b"\x85}\x92",
    "GLOBAL alone": lambda m, n, t: f"c{m}\n{n}\n".encode(),
    # a Namespace is allowed: as what is called, and as what takes a state
    "REDUCE in a Namespace": lambda m, n, t: (
        b"cargparse\nNamespace\n)R}" + text("a") + CALLS["GLOBAL REDUCE"](m, n, t) + b"sb"
    ),
    "BUILD of a function": lambda m, n, t: f"c{m}\n{n}\n".encode() + b"}" + text(t) + b"Nsb",
    "REDUCE of a tensor's rebuild": lambda m, n, t: (
        b"ctorch._utils\n_rebuild_parameter\n" + f"c{m}\n{n}\n".encode() + b"\x89}\x87R"
    ),
    "type of a tensor": lambda m, n, t: (
        b"ctorch._tensor\n_rebuild_from_type_v2\n("
        + f"c{m}\n{n}\n".encode()
        + f"c{m}\n{n}\n".encode()
        + text(t)
        + b"\x85}tR"
    ),
}


def pickled(call: bytes) -> bytes:
    """{"state_dict": what the call gives}"""
    return b"\x80\x04}" + text("state_dict") + call + b"s."


def torch_zip(data: bytes) -> bytes:
    """A file of torch.save with this data.pkl."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, part in (("data.pkl", data), ("byteorder", b"little"), ("version", b"3\n")):
            archive.writestr(f"archive/{name}", part)
    return buffer.getvalue()


def torch_legacy(data: bytes) -> bytes:
    """A file of torch.save before 1.6: five pickles, the fourth of which is this."""
    sizes = {"short": 2, "int": 4, "long": 4}
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes}
    start = (torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, system)
    before = b"".join(pickle.dumps(value, 2) for value in start)
    return before + data + pickle.dumps([], 2)


FORMATS: dict[str, Callable[[bytes], bytes]] = {
    "zip": torch_zip,
    "legacy": torch_legacy,
    "bare": lambda data: data,
}


def refused(read: Callable[[], object], canary: Path) -> str:
    """The message of a refusal: exit code 2, one line, no canary."""
    with pytest.raises(UserError) as caught:
        read()
    assert caught.value.code == 2
    assert not canary.exists()
    return str(caught.value)


def test_the_gadgets_work_where_pickles_are_let(tmp_path: Path) -> None:
    """Else that none makes its canary would show nothing."""
    canary = tmp_path / "canary"
    written = f"open({str(canary)!r}, 'w').close()"
    for module, name, argument in (
        ("os", "system", f"touch '{canary}'"),
        ("subprocess", "getoutput", f"touch '{canary}'"),
        ("builtins", "exec", written),
        ("builtins", "eval", written),
    ):
        for how in ("GLOBAL REDUCE", "STACK_GLOBAL REDUCE", "INST", "OBJ"):
            pickle.loads(pickled(CALLS[how](module, name, argument)))
            canary.unlink()
    assert len(NAMES) == len(set(NAMES)) > 250


def test_a_file_without_a_gadget_is_read_in_each_format(tmp_path: Path) -> None:
    """Else their layout may be what is refused."""
    path = tmp_path / "a.pth"
    for form in (torch_zip, torch_legacy):
        path.write_bytes(form(pickled(b"}")))
        line = refused(lambda: checkpoint.load_checkpoint(path), tmp_path / "canary")
        assert "holds no state dict" in line


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", FORMATS)
def test_every_gadget_in_a_checkpoint_is_refused(tmp_path: Path, form: str) -> None:
    path, canary = tmp_path / "a.pth", tmp_path / "canary"
    for module, name in NAMES:
        path.write_bytes(
            FORMATS[form](pickled(CALLS["GLOBAL REDUCE"](module, name, f"touch '{canary}'")))
        )
        for mapped in (False, True):
            line = refused(lambda m=mapped: checkpoint.load_checkpoint(path, m), canary)  # type: ignore[misc]
            assert line.startswith(f"{path}: cannot be read safely"), (module, name)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("how", CALLS)
def test_every_way_to_call_one_is_refused_in_every_file_of_a_run(tmp_path: Path, how: str) -> None:
    canary, path = tmp_path / "canary", tmp_path / "a.pth"
    for module, name in (("os", "system"), ("builtins", "exec"), ("torch.hub", "load")):
        for form in FORMATS.values():
            data = form(pickled(CALLS[how](module, name, f"touch '{canary}'")))
            path.write_bytes(data)
            refused(lambda: checkpoint.load_checkpoint(path), canary)
            (tmp_path / fold_state.STATE_FILE).write_bytes(data)
            refused(lambda: fold_state.load_fold_state(tmp_path), canary)


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (subprocess.getoutput, (f"touch '{self.canary}'",))


def npz(canary: Path, changed: str, kind: str) -> bytes:
    """Arrays of a validation and of a prediction, one of which is an object's pickle, or a header
    that is a program.
    """
    arrays: dict[str, np.ndarray] = {
        "files": np.array(["a.jpg"]),
        "probs_main": np.full((1, 1, 18), 1 / 18, np.float32),
        "task": np.array("main"),
        "probabilities": np.full((1, 1, 1, 18), 1 / 18, np.float32),
        "members": np.array(["a.pth"]),
        "folds": np.array([0]),
        "weights": np.array([0.5]),
        "images": np.array(["a.jpg"]),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            data = fuzz_readers.saved(lambda file, a=array: np.save(file, a))  # type: ignore[misc]
            if name == changed and kind == "object":
                array = np.empty(array.shape, object)
                array.fill(Evil(canary))
                data = fuzz_readers.saved(lambda file, a=array: np.save(file, a))  # type: ignore[misc]
            elif name == changed and kind == "header":
                call = f"__import__('subprocess').getoutput('touch {canary}')"
                header = f"{{'descr': {call}, 'fortran_order': False, 'shape': (1,)}}\n"
                data = b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode()
            elif name == changed:  # numpy takes what is no array for a pickle
                data = pickled(CALLS["GLOBAL REDUCE"]("os", "system", f"touch '{canary}'"))
            archive.writestr(f"{name}.npy", data)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["object", "header", "pickle"])
def test_arrays_of_objects_are_refused(tmp_path: Path, kind: str) -> None:
    canary = tmp_path / "canary"
    for changed in ("files", "probs_main", "nothing"):
        (tmp_path / fold_state.VALIDATION_FILE).write_bytes(npz(canary, changed, kind))
        if changed == "nothing":
            assert fold_state.load_validation(tmp_path, "main") is not None
        else:
            refused(lambda: fold_state.load_validation(tmp_path, "main"), canary)
    for changed in ("task", "probabilities", "members", "folds", "weights", "images", "nothing"):
        (tmp_path / submission.PROBS).write_bytes(npz(canary, changed, kind))
        if changed == "nothing":
            assert submission.load_probabilities(tmp_path).images == ["a.jpg"]
        else:
            refused(lambda: submission.load_probabilities(tmp_path), canary)
    if kind == "object":
        np.load(tmp_path / submission.PROBS, allow_pickle=True)
        data = io.BytesIO(npz(canary, "folds", kind))
        assert np.load(data, allow_pickle=True)["folds"].dtype == object
        assert canary.exists(), "it does run where it is let"


@pytest.mark.parametrize("form", FORMATS)
def test_the_scripts_end_with_code_2_and_one_line(
    train_root: Path, eval_root: Path, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    canary, path = tmp_path / "canary", tmp_path / "kfold-ensemble-x" / "fold00" / "a.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(
        FORMATS[form](pickled(CALLS["GLOBAL REDUCE"]("os", "system", f"touch '{canary}'")))
    )
    out = ["--save-path", str(tmp_path / "out")]
    training = ["--train-root", str(train_root), *out, *support.FAST]
    evaluation = ["--data-root", str(eval_root), *out, "--device", "cpu"]
    commands: list[tuple[Any, list[str]]] = [
        (train, [*training, "--load-state-dict", str(path)]),
        (train, [*training, "--pretrained", str(path)]),
        (submit_singular, [*evaluation, "--load-state-dict", str(path)]),
        (submit_ensemble, [*evaluation, "--root", str(path.parent.parent)]),
    ]
    for script, words in commands:
        capsys.readouterr()
        assert run_script(lambda _, s=script, w=words: s.main(w), "script.py") == 2  # type: ignore[misc]
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert f"{path}: cannot be read safely" in lines[0]
        assert not canary.exists()
        assert not (tmp_path / "out").exists()


def test_each_promise_of_the_page_has_its_test() -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)`: `(\w+)`", page)
    assert len(named) > 20
    for file, name in named:
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}: {name}"
