"""The Python API, step by step: one model, its golden graph, a target graph, an artifact, parity and latency.

    python examples/api.py

It writes into built/ and shipped/ of the current folder.
"""

from pathlib import Path

from minilm import SentenceEmbedder, tokenize

import graphwright as gw

module = SentenceEmbedder().eval()
feeds = tokenize(["The train to the coast leaves at half past six.", "Who left the window open?", "Rain again."])


def main() -> None:
    import torch

    ids, mask = torch.from_numpy(feeds["input_ids"]), torch.from_numpy(feeds["attention_mask"])
    dims = {0: "batch", 1: "sequence"}
    spec = gw.ModelSpec(
        module,
        inputs={"input_ids": ids, "attention_mask": mask},
        dynamic={"input_ids": dims, "attention_mask": dims},
        ranges={"sequence": (1, 128, 512)},
        calibration=None,
        name="minilm",
    )
    golden = gw.to_onnx(spec, opset=23)
    lifted = gw.lift(golden)
    print(f"lifted: {sum(site.status == 'lifted' for site in lifted.log.sites)} of {len(lifted.log.sites)} sites")

    done = gw.optimize(golden, target="ort-cpu", precision="fp32", calibration=None)
    for site in done.log.sites[:3]:
        print(f"  {site.kind} at {site.path}: {site.status}")

    art = gw.build(done, out="built/")
    with art.open() as session:
        outputs = session.run({"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
    print({name: array.shape for name, array in outputs.items()})

    print("parity passed:", gw.verify(spec, art).passed)
    print(gw.bench([art], inputs={"input_ids": ids.numpy(), "attention_mask": mask.numpy()}, budget=5))

    targets = ["ort-cpu:fp32", "ort-cpu:int8-dynamic", "tensorrt-rtx:fp16"]
    shipped = gw.ship(f"{Path(__file__).with_name('minilm.py')}:spec", targets=targets, out="shipped/", budget=5)
    print(shipped)


if __name__ == "__main__":
    main()
