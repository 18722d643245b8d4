"""`jaxseg configs`: the configs that come with jaxseg."""

import ast
from argparse import Namespace
from pathlib import Path

from jaxseg.cli.common import Commands, add_command


def add(commands: Commands) -> None:
    """Adds `jaxseg configs`."""
    parser = add_command(
        commands,
        "configs",
        run,
        summary="list or copy the shipped configs",
        description="Lists the configs that come with jaxseg, or copies one to a file to\n"
        "train with or to change.",
        example="jaxseg configs\n  jaxseg configs shapes --output my_config.py",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="config to copy")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="file to write, which must not exist (default: NAME.py)",
    )


def run(args: Namespace) -> int:
    """Runs the command."""
    from jaxseg.cli.config_file import shipped_configs
    from jaxseg.utils.names import suggest_name

    configs = shipped_configs()
    if args.name is None:
        if args.output is not None:
            raise ValueError("--output needs the name of a config to copy.")
        width = max(map(len, configs))
        for name, path in configs.items():
            print(f"{name:{width}}  {_summary(path)}")
        return 0
    name = args.name.removesuffix(".py")
    if name not in configs:
        raise ValueError(f"Unknown config {name!r}{suggest_name(name, configs)}")
    output = args.output or Path(f"{name}.py")
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(output, "x", encoding="utf-8") as file:
            file.write(configs[name].read_text(encoding="utf-8"))
    except FileExistsError:
        raise ValueError(f"{output} already exists; choose another --output.") from None
    print(f"wrote {output}")
    return 0


def _summary(path: Path) -> str:
    """The first line of a config's docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]
