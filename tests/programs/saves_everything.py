# ruff: noqa: PTH103, PTH104, PTH105, PTH107, PTH109, PTH110, PTH123, PTH208
"""Writes in every way over what its user has in this folder, and finds again what it wrote."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

work = os.getcwd()
pathlib.Path("weights.pt").write_text("stub")
assert pathlib.Path("weights.pt").read_text() == "stub"
with open("log.csv", "a") as log:
    log.write("y\n")
assert pathlib.Path("log.csv").read_text() == "x\ny\n"
os.makedirs("new/deep", exist_ok=True)
pathlib.Path("new/deep/file").write_text(json.dumps([1]))
assert sorted(os.listdir(".")) == ["kept", "latest", "log.csv", "new", "weights.pt"]
shutil.rmtree("kept")
assert not os.path.exists("kept/best/model")
os.makedirs("kept")
pathlib.Path("kept/model.tmp").write_text("later")
os.replace("kept/model.tmp", "kept/model")
assert os.listdir("kept") == ["model"]
assert pathlib.Path("latest/model").read_text() == "later"
os.remove("weights.pt")
assert not pathlib.Path("weights.pt").exists()
os.rename("log.csv", "old.csv")
assert pathlib.Path("old.csv").read_text() == "x\ny\n"
with tempfile.NamedTemporaryFile("w", dir="new", delete=False) as aside:
    aside.write("t")
os.replace(aside.name, "new/whole")
shutil.copytree("new", "copy")
assert sorted(str(path) for path in pathlib.Path("copy").rglob("*")) == ["copy/deep", "copy/deep/file", "copy/whole"]
os.chdir("new")
assert os.getcwd() == f"{work}/new"
pathlib.Path("here").write_text("")
assert pathlib.Path("../new/here").exists()
child = "import os; print(os.path.exists('here'), os.path.exists('../weights.pt'))"
told = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True)
assert told.stdout.split() == ["True", "False"], told
os.chdir("..")
os.system("rm -rf kept log.csv weights.pt; echo shell > shell.txt")
print(subprocess.check_output(["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"], text=True))
