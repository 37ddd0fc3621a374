"""PointPillars on every rank that torchrun starts (gloo). usage: mmdet3d_script.py DATA WORK_DIR"""

import sys
from pathlib import Path

import mmdet3d_parts as parts
import torch
import torch.distributed as dist
from mmengine.runner import Runner


def main(data: str, work_dir: str) -> None:
    dist.init_process_group("gloo")  # before Runner, which would ask for nccl
    torch.manual_seed(0)
    torch.set_num_threads(1)
    cfg = parts.small_run(parts.pointpillars(), Path(data), Path(work_dir), replay_train=True)
    cfg.launcher = "pytorch"
    cfg.model_wrapper_cfg = {
        "type": "MMDistributedDataParallel",
        "broadcast_buffers": False,
        "device_ids": None,
        "find_unused_parameters": True,
    }
    cfg.train_dataloader.batch_size = cfg.val_dataloader.batch_size = 1
    Runner.from_cfg(cfg).train()


if __name__ == "__main__":
    main(*sys.argv[1:])
