"""Puts the Serve config files of the checkout's root into the wheel, as ``raylens/shipped``."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithConfigs(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:  # the checkout has them
            return
        shipped = Path(self.build_lib, "raylens", "shipped")
        for file in [ROOT / "serve_config.yaml", *sorted(ROOT.glob("configs/*.yaml"))]:
            target = shipped / file.relative_to(ROOT)
            self.mkpath(str(target.parent))
            self.copy_file(str(file), str(target))


setup(cmdclass={"build_py": BuildWithConfigs})
