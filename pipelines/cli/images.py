"""`vapi sample|score|geneval|export|push|register`: images and models, of the run or of anywhere."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.app import IMAGES, Device, command, group

Layout = Annotated[Path, typer.Argument(help="images in GenEval's layout")]

export = group("export", "Hands weights and images to other people's scripts.", IMAGES)


@command(
    "vapi sample drawn --generator c2i_XL_384.pt --tokenizer vq_ds16_c2i.pt --image-size 384 --classes 207,360 --count 4",
    "vapi sample drawn --generator data/aligned/va-pi/30 --tokenizer data/tokenizer --classes 3,7",
    "vapi sample drawn --generator deepseek-community/Janus-Pro-1B --prompt 'a red fox in snow' --guidance 5",
    "vapi sample drawn --prompts drawbench.csv --variant va-pi --seed 4 --guidance 7.5 --count 4",
    panel=IMAGES,
)
def sample(
    folder: Annotated[Path, typer.Argument(help="where the PNGs go")],
    generator: Annotated[
        str | None, typer.Option(help="LlamaGen's .pt, a folder of ours, a Janus (default: the run's, by --variant)")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="tokenizer checkpoint, in the same formats (default: beside the generator)")
    ] = None,
    classes: Annotated[str | None, typer.Option(help="numbers of classes, with commas between")] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="GenEval's .jsonl, or .csv, .tsv, .json, .txt")
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="one prompt; may be repeated")] = None,
    variant: Annotated[str, typer.Option(help="without --generator: one of params.yaml, or base")] = "base",
    seed: Annotated[
        int | None,
        typer.Option(
            help="seed of the images; without --generator of the alignment too (default: 0, or the run's first)"
        ),
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="default: 1, none; or the run's")] = None,
    temperature: Annotated[float | None, typer.Option(help="default: 1, or the run's")] = None,
    top_k: Annotated[int, typer.Option(min=0, help="with --generator: 0 keeps all tokens")] = 0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="with --generator: 1 keeps all tokens")] = 1.0,
    count: Annotated[int | None, typer.Option(min=1, help="images of each (default: 1, or the run's)")] = None,
    image_size: Annotated[int | None, typer.Option(min=1, help="of LlamaGen's .pt, which do not have it")] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="of a .pt of no official size")] = None,
    text_encoder: Annotated[str | None, typer.Option(help="FLAN-T5-XL, a folder or a cached hub id")] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="images drawn at once; another number rounds differently: a token here and there")
    ] = 16,
    device: Device = "auto",
) -> None:
    """Draws images for classes or prompts, from any checkpoint or from the run's generators.

    Images of classes lie in a folder of their class, those of prompts in GenEval's layout. An interrupted run goes on
    where it was.
    """
    if generator is None:
        if prompts is None:
            raise typer.BadParameter("give --generator, or --prompts to draw from the run of params.yaml")
        from pipelines.commands import draw

        images = draw.draw(
            folder,
            prompts,
            variant=variant,
            seed=seed,
            guidance=guidance,
            temperature=temperature,
            count=count,
            batch_size=batch_size,
            device=device,
        )
    else:
        from pipelines.commands import sample
        from vapi_core.sampling.sampler import SamplingConfig

        config = SamplingConfig(
            temperature=1.0 if temperature is None else temperature,
            top_k=top_k,
            top_p=top_p,
            guidance_scale=1.0 if guidance is None else guidance,
        )
        images = sample.sample(
            folder,
            generator,
            tokenizer,
            classes=sample.parse_classes(classes),
            prompts=prompts,
            texts=prompt or (),
            text_encoder=text_encoder,
            image_size=image_size,
            heads=heads,
            count=count or 1,
            seed=seed or 0,
            config=config,
            batch_size=batch_size,
            device=device,
        )
    print(f"{images} images in {folder}")


@command("vapi score images --prompts drawbench.csv --by hpsv2", panel=IMAGES)
def score(
    folder: Layout,
    by: Annotated[str, typer.Option(help="clip or hpsv2")] = "clip",
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="DrawBench-style .csv, .tsv, .json or .txt, put there first")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="PATH", help="a file or an open_clip folder (default: the hub's cache)")
    ] = None,
    hps_version: Annotated[str, typer.Option(help="weights of HPSv2, 2.0 or 2.1")] = "2.0",
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    device: Device = "auto",
) -> int:
    """CLIP score or HPSv2 of any folder of images. Exit code 1 if any could not be scored.

    The score is printed and goes to FOLDER/clip.json or FOLDER/hpsv2.json.
    """
    from pipelines.commands import preference

    return preference.score(
        folder,
        by=by,
        prompts=prompts,
        weights=weights,
        hps_version=hps_version,
        batch_size=batch_size,
        device=device,
    )


@command("vapi geneval images --detector assets/mask2former", "vapi geneval images/results.jsonl", panel=IMAGES)
def geneval(
    folder: Annotated[Path, typer.Argument(help="images in GenEval's layout, or a results.jsonl")],
    detector: Annotated[
        str | None, typer.Option(help="Mask2Former: a folder or a cached hub id (default: facebook's swin-small, COCO)")
    ] = None,
    colors: Annotated[
        str | None, typer.Option(metavar="PATH", help="CLIP ViT-L/14: a file or a folder (default: the hub's cache)")
    ] = None,
    results: Annotated[Path | None, typer.Option(help="default: FOLDER/results.jsonl")] = None,
    check_images: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="photographs to check the detector on")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="one of the official script's; may be repeated")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    device: Device = "auto",
) -> int:
    """GenEval of any folder of images. Exit code 1 if any could not be scored.

    Of a file of results, ours or the official script's, only the scores are computed. An interrupted run goes on where
    it was.
    """
    from pipelines.commands import geneval

    return geneval.evaluate(
        folder,
        detector=detector,
        colors=colors,
        results=results,
        photographs=check_images,
        options=option or (),
        batch_size=batch_size,
        device=device,
    )


@command("vapi export weights data/aligned/va-pi/0 va-pi.pt", to=export)
def weights(
    directory: Annotated[Path, typer.Argument(help="the folder of a model")],
    file: Annotated[Path, typer.Argument(help="what to write")],
) -> None:
    """Writes a model as LlamaGen's official .pt."""
    from pipelines.commands import export

    export.export_weights(directory, file)


@command("vapi export images data/samples/experiment/va-pi/t1.0-g1.0-0 va-pi.npz", to=export)
def images(
    directory: Annotated[Path, typer.Argument(help="the folder of an image set")],
    file: Annotated[Path, typer.Argument(help="what to write")],
) -> None:
    """Writes an image set as the .npz that ADM's evaluator reads."""
    from pipelines.commands import export

    export.export_images(directory, file)


@command("vapi export folder data/samples/experiment/va-pi/t1.0-g7.5-0 drawn", to=export)
def folder(
    directory: Annotated[Path, typer.Argument(help="the folder of an image set that was drawn by prompts")],
    folder: Annotated[Path, typer.Argument(help="where the PNGs go")],
) -> None:
    """Writes an image set as a folder in GenEval's layout."""
    from pipelines.commands import draw

    print(f"{draw.export_folder(directory, folder)} images in {folder}")


@command("vapi register data/aligned/va-pi/30 --name mnist-va-pi", panel=IMAGES)
def register(
    directory: Annotated[Path, typer.Argument(help="aligned weights of one seed")],
    name: Annotated[str | None, typer.Option(help="of the model (default: PROFILE-VARIANT)")] = None,
) -> None:
    """Registers aligned weights as a version of a model in MLflow's registry."""
    from pipelines.commands import register

    register.register(directory, name)


@command(
    "vapi push data/aligned/va-pi/30 released --license apache-2.0",
    "vapi push data/aligned/va-pi/30 me/mnist-va-pi --hub --private --license apache-2.0",
    panel=IMAGES,
)
def push(
    directory: Annotated[Path, typer.Argument(help="aligned weights of one seed")],
    target: Annotated[str, typer.Argument(help="a folder to make, or with --hub the id of a repository")],
    hub: Annotated[
        bool, typer.Option("--hub", help="upload to the Hugging Face Hub; log in first with `hf auth login`")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="a repository that is made is private")] = False,
    license: Annotated[str | None, typer.Option(help="as the Hub calls it (default: the base's, if known)")] = None,
) -> None:
    """Publishes aligned weights with a model card: what they were made from, scores with intervals, licence."""
    from pipelines.commands import push

    print(push.push(directory, target, hub=hub, private=private, license=license))
