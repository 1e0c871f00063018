"""The steps of a rehearsal: what somebody types who installs a release without a network, tries it, and proves it."""

from __future__ import annotations

from dataclasses import dataclass

BIN = "/opt/echovlm/bin"
VERIFY = "minisign -V -p vendor.pub -m dist/SHA256SUMS"
CHECK = "(cd dist && sha256sum --check --ignore-missing SHA256SUMS)"
VENV = "python3 -m venv /opt/echovlm"
INSTALL = f"{BIN}/pip install --no-index --find-links wheelhouse --require-hashes -r wheelhouse/requirements.lock"
ACCEPT = f"{BIN}/echovlm-accept --bundle bundles/demo --target cpu --output acceptance --quick --minutes 0.2"
# What an extra brings of others, and which of them each command needs.
BRINGS = {"demo": {"build", "serve", "simulate"}, "export": {"build"}}
COMMANDS = {
    "echovlm-report": {"client"},
    "echovlm-serve": {"serve"},
    "echovlm-bundle": {"serve"},
    "echovlm-doctor": {"serve"},
    "echovlm-profile": {"serve"},
    "echovlm-accept": {"serve", "page"},
    "echovlm-dicom": {"dicom"},
    "echovlm-evaluate": {"serve", "evaluate"},
    "echovlm-build": {"serve", "build"},
}
UNPACK = "tar -xzf dist/echovlm_edge-*.tar.gz --strip-components=1 --wildcards '*/demo' '*/benchmarks'"
CONSOLE = f"""{BIN}/echovlm-serve --bundle bundles/demo --listen 127.0.0.1:50051 --http 127.0.0.1:8080 > console.txt 2>&1 &
for second in $(seq 300); do
    if python3 -c 'import urllib.request as web; print(web.urlopen("http://127.0.0.1:8080/").read().decode())' 2> /dev/null; then
        exit 0
    fi
    sleep 1
done
cat console.txt; exit 1"""
KERNELS = {"x86_64": "avx", "aarch64": "neon"}  # how the names of our CPU kernels begin
# What each extra of an offline installation lets a program import.
OFFLINE = {
    "client": "pydicom, rich",
    "serve": "grpc_health, llguidance, onnxruntime, pydantic, tokenizers, openjpeg, libjpeg",
    "clinical": "fhir.resources, highdicom",
    "http": "multipart, starlette, uvicorn",
    "dicom": "fpdf, highdicom, pynetdicom",
    "video": "av",
    "jpegxl": "pillow_jxl",
    "traces": "opentelemetry.exporter.otlp.proto.grpc",
    "page": "vl_convert",
    "ray": "ray.serve",
    "tensorrt": "cuda.bindings, onnx",
    "evaluate": "jieba, nltk, rouge_chinese, rouge_score, sacrebleu",
    "simulate": "scipy.ndimage",
    "checks": "ml_dtypes, pytest",
}
# With PyTorch, of which the Python Package Index has a wheel of several gigabytes, and PyTorch's own index a smaller one.
WITH_TORCH = {"build": "onnx, onnxscript, torch", "export": "optimum, transformers", "bertscore": "bert_score"}
# Resolved and measured, not installed: gigabytes, and used with a GPU alone.
GPU = ("serve-gpu", "rtx")
IMPORTS = {**OFFLINE, **WITH_TORCH, "demo": "onnxruntime, scipy, torch"}


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: in a few words.
        command: lines of sh, which all must succeed, run in the folder with `dist/`, `wheelhouse/` and `bundles/demo/`.
    """

    name: str
    command: str


def journey(processor: str, extras: tuple[str, ...], signed: bool) -> list[Step]:
    """Return a rehearsal's steps, in order: those that the extras are enough for.

    Args:
        processor: `x86_64` or `aarch64`.
        extras: that the wheelhouse has.
        signed: the release is signed, and `vendor.pub` is there.
    """
    have = {"client", *extras}.union(*(BRINGS.get(extra, ()) for extra in extras))
    building = "demo" in extras
    demo = f"{BIN}/python -m demo.run" + ("" if building else " --bundle bundles/demo")
    doctor = (
        f"{BIN}/echovlm-doctor --bundle bundles/demo | tee doctor.txt; grep 'kernels  *{KERNELS[processor]}' doctor.txt"
    )
    commands = "\n".join(f"{BIN}/{command} --version" for command, needs in COMMANDS.items() if needs <= have)
    steps: list[tuple[set[str], str, str]] = [
        # The loopback interface is the only line with a colon.
        (set(), "nothing but Python, no network", 'uname -m; python3 --version; test "$(grep -c : /proc/net/dev)" = 1'),
        (set(), "verify the release", f"{VERIFY} && {CHECK}" if signed else CHECK),
        (set(), "make an environment", VENV),
        (set(), "install", f"{INSTALL}\n{BIN}/pip check"),
        (set(), "every command", commands),
        ({"serve"}, "our kernels", doctor),
        ({"serve", "simulate"}, "unpack the demo", UNPACK),
        ({"serve", "simulate"}, "build, serve, report" if building else "serve, report", demo),
        ({"serve", "simulate", "dicom"}, "a study by DICOM", f"{BIN}/python -m demo.run_dicom"),
        ({"serve", "http"}, "the console by HTTP", CONSOLE),
        ({"serve", "page"}, "prove it", ACCEPT),
        (set(), "nothing left in the home", "find /root -type f | tee home.txt\ntest ! -s home.txt"),
    ]
    return [*(Step(name, line) for needs, name, line in steps if needs <= have), *map(alone, extras)]


def alone(extra: str) -> Step:
    """Return the step that installs one extra by its own lock file into its own environment, and imports what it brings."""
    folder = f"/opt/{extra}"
    install = f"{BIN}/pip --python {folder}/bin/python install --no-compile --no-index --find-links wheelhouse --require-hashes"
    return Step(
        f"{extra} alone",
        f"python3 -m venv --without-pip {folder}\n{install} -r locks/{extra}.lock\n"
        f'{folder}/bin/python -c "import echovlm.v1.report_pb2_grpc, {IMPORTS[extra]}"\nrm -rf {folder}',
    )
