"""`jaxseg import-weights` and `export-weights`: files of weights in and out."""

from pathlib import Path
from typing import Any

from jaxseg.cli.common import (
    add_command,
    add_workdir,
    check_writable,
    json_object,
    open_workdir,
)


def add_import(commands):
    """Describes `jaxseg import-weights`."""
    parser = add_command(
        commands,
        "import-weights",
        run_import,
        summary="make a workdir of a file of another library",
        description="Makes a workdir of weights that another library trained: torch\n"
        "(torchvision, pytorch-fcn, segmentation_models.pytorch), Caffe, or\n"
        "`jaxseg export-weights`. Neither torch nor Caffe is needed, and no code in\n"
        "the file is run. Every tensor must have its place in the model, and every\n"
        "variable its tensor; all that do not are named. The images' normalisation\n"
        "comes along.",
        example="jaxseg import-weights fcn_resnet50_coco.pth --model fcn_resnet50 "
        "--output runs/fcn_resnet50",
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        help=".pth, .pt, .safetensors, .npz or .caffemodel; told apart by content",
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="a model of jaxseg.list_models() (default: what an exported file says)",
    )
    parser.add_argument(
        "--encoder", metavar="NAME", help="its encoder (default: the model's own)"
    )
    parser.add_argument(
        "--num-classes", type=int, metavar="K", help="(default: what the file has)"
    )
    parser.add_argument(
        "--model-kwargs",
        type=json_object,
        default={},
        metavar="JSON",
        help="""what else the model takes, such as '{"geometry": "same"}'""",
    )
    parser.add_argument(
        "--head",
        choices=("keep", "new"),
        default="keep",
        help="new: layers that depend on the classes, and those that no such file has, "
        "start afresh, and what is for them alone is left out (default: keep)",
    )
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="a data set's classes.json, for names and colours of the classes",
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="the workdir to make"
    )


def add_export(commands):
    """Describes `jaxseg export-weights`."""
    parser = add_command(
        commands,
        "export-weights",
        run_export,
        summary="write a network's weights to a safetensors file",
        description="Writes parameters and BatchNorm statistics under their own names,\n"
        "with the model's description in the header: `jaxseg import-weights` makes the\n"
        "same workdir of it, without the optimiser's state.",
        example="jaxseg export-weights --workdir runs/camvid "
        "--output camvid.safetensors",
    )
    add_workdir(parser)
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="to write"
    )


def run_import(args) -> int:
    """Does what `add_import` describes."""
    from jaxseg.checkpoints.run import save
    from jaxseg.parallel.compilation import enable_compilation_cache
    from jaxseg.weights.importer import import_weights
    from jaxseg.weights.mapping import summary

    enable_compilation_cache()
    output = Path(args.output)
    if output.exists() and any(output.iterdir() if output.is_dir() else [output]):
        raise ValueError(f"{output} is there already; give another --output.")
    check_writable(output.parent)
    imported = import_weights(args.file, _model(args), head=args.head)
    converted = imported.converted
    fields: dict[str, Any] = {"normalization": converted.mapping.normalization}
    exported = imported.metadata
    if exported is not None:
        kept = ["channels", "image_size", "data", "train_split", "val_split"]
        kept += ["eval_batch_size", "absent", "config"]
        if exported.num_classes == imported.model["num_classes"]:
            kept += ["class_names", "palette"]
        fields |= {name: getattr(exported, name) for name in kept}
    fields["imported"] = {
        "file": Path(args.file).name,
        "new": converted.new,
        "left_out": converted.dropped,
    }
    fields |= _classes(args, imported.model)
    save(output, imported.variables, model=imported.model, **fields)
    print(
        f"{converted.mapping.name}: {len(converted.variables)} variables from "
        f"{args.file}\n"
        f"new: {summary(converted.new) or 'none'}\n"
        f"left out: {summary(converted.dropped) or 'none'}\n"
        f"written to {output}"
    )
    return 0


def run_export(args) -> int:
    """Does what `add_export` describes."""
    from jaxseg.weights.importer import export_weights

    if args.output.is_dir() or args.output.suffix != ".safetensors":
        raise ValueError(
            f"--output={args.output}: give a file's name that ends in .safetensors."
        )
    _, variables, metadata = open_workdir(args)
    check_writable(args.output.parent)
    export_weights(args.output, variables, metadata)
    print(f"step {metadata.step} written to {args.output}")
    return 0


def _model(args) -> dict[str, Any] | None:
    if args.model is None:
        if args.encoder or args.num_classes or args.model_kwargs:
            raise ValueError("Say by --model which model takes them.")
        return None
    model = {"name": args.model, **args.model_kwargs}
    if args.encoder is not None:
        model["encoder"] = args.encoder
    if args.num_classes is not None:
        model["num_classes"] = args.num_classes
    return model


def _classes(args, model: dict[str, Any]) -> dict[str, Any]:
    """Names and colours, where a file says them."""
    from jaxseg.data.datasets.classes import read_classes

    if args.classes is None:
        return {}
    classes = read_classes(args.classes)
    if len(classes.names) != model["num_classes"]:
        raise ValueError(
            f"{args.classes} names {len(classes.names)} classes, and the model tells "
            f"apart {model['num_classes']}."
        )
    return {"class_names": classes.names, "palette": classes.palette}
