"""`jaxseg import-weights` and `export-weights`: exchange weights with other libraries."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from jaxseg.cli.common import (
    Commands,
    add_command,
    add_workdir,
    check_writable,
    json_object,
    open_workdir,
)


def add_import(commands: Commands) -> None:
    """Adds `jaxseg import-weights`."""
    parser = add_command(
        commands,
        "import-weights",
        run_import,
        summary="import pretrained weights of another library",
        description="Creates a workdir from pretrained weights of torchvision, pytorch-fcn,\n"
        "segmentation_models.pytorch or Caffe, or from a file of `jaxseg\n"
        "export-weights`. Neither torch nor Caffe is needed, and no code in the file is\n"
        "executed. Every tensor must belong to a variable of the model and every\n"
        "variable to a tensor; otherwise nothing is written, and the others are\n"
        "listed. The normalization of the images is set to that of the weights.",
        example="jaxseg import-weights fcn_resnet50_coco.pth --model fcn_resnet50 "
        "--output runs/fcn_resnet50",
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        help="weights: .pth, .pt, .safetensors, .npz or .caffemodel",
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="model, one of jaxseg.list_models() (default: the model in the file, if "
        "`jaxseg export-weights` wrote it)",
    )
    parser.add_argument(
        "--encoder", metavar="NAME", help="encoder (default: that of the model)"
    )
    parser.add_argument(
        "--num-classes",
        type=int,
        metavar="K",
        help="number of classes (default: that of the file)",
    )
    parser.add_argument(
        "--model-kwargs",
        type=json_object,
        default={},
        metavar="JSON",
        help="""further keyword arguments of the model, such as '{"geometry": "same"}'""",
    )
    parser.add_argument(
        "--head",
        choices=("keep", "new"),
        default="keep",
        help="new: initialize the layers that depend on the number of classes, and those "
        "that this kind of file lacks, instead of importing them (default: keep)",
    )
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="classes.json of a data set, for names and colors of the classes",
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="workdir to create"
    )


def add_export(commands: Commands) -> None:
    """Adds `jaxseg export-weights`."""
    parser = add_command(
        commands,
        "export-weights",
        run_export,
        summary="export weights to a safetensors file",
        description="Writes parameters and BatchNorm statistics under their own names,\n"
        "with a description of the model in the header. `jaxseg import-weights` makes\n"
        "the same workdir from it, without the state of the optimizer and without the\n"
        "location of the data.",
        example="jaxseg export-weights --workdir runs/camvid "
        "--output camvid.safetensors",
    )
    add_workdir(parser)
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="file to write"
    )


def run_import(args: Namespace) -> int:
    """Runs `jaxseg import-weights`; returns the exit status."""
    from jaxseg.checkpoints.run import save
    from jaxseg.parallel.compilation import enable_compilation_cache
    from jaxseg.weights.importer import import_weights
    from jaxseg.weights.mapping import summary

    enable_compilation_cache()
    output = Path(args.output)
    if output.exists() and any(output.iterdir() if output.is_dir() else [output]):
        raise ValueError(f"{output} already exists; give another --output.")
    check_writable(output.parent)
    imported = import_weights(args.file, _model(args), head=args.head)
    converted = imported.converted
    fields: dict[str, Any] = {"normalization": converted.mapping.normalization}
    exported = imported.metadata
    if exported is not None:
        # Not `data` and `eval_batch_size`: a stranger's file must not choose folders.
        kept = [
            "channels",
            "image_size",
            "train_split",
            "val_split",
            "absent",
            "config",
        ]
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


def run_export(args: Namespace) -> int:
    """Runs `jaxseg export-weights`; returns the exit status."""
    from jaxseg.weights.importer import export_weights

    if args.output.is_dir() or args.output.suffix != ".safetensors":
        raise ValueError(
            f"--output={args.output}: the file's name must end in .safetensors."
        )
    _, variables, metadata = open_workdir(args)
    check_writable(args.output.parent)
    export_weights(args.output, variables, metadata)
    print(f"step {metadata.step} written to {args.output}")
    return 0


def _model(args: Namespace) -> dict[str, Any] | None:
    if args.model is None:
        if args.encoder or args.num_classes or args.model_kwargs:
            raise ValueError(
                "--encoder, --num-classes and --model-kwargs need --model."
            )
        return None
    model = {"name": args.model, **args.model_kwargs}
    if args.encoder is not None:
        model["encoder"] = args.encoder
    if args.num_classes is not None:
        model["num_classes"] = args.num_classes
    return model


def _classes(args: Namespace, model: dict[str, Any]) -> dict[str, Any]:
    """Names and colors of the classes, if --classes is given."""
    from jaxseg.data.datasets.classes import read_classes

    if args.classes is None:
        return {}
    classes = read_classes(args.classes)
    names = classes.names or ()
    if len(names) != model["num_classes"]:
        raise ValueError(
            f"{args.classes} has {len(names)} classes, but the model has "
            f"{model['num_classes']}."
        )
    return {"class_names": names, "palette": classes.palette}
