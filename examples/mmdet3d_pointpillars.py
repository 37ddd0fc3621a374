"""PointPillars of MMDetection3D, every prediction recorded: the shipped config and four lines.

    train=$(python -c "import mmdet3d, pathlib; print(pathlib.Path(mmdet3d.__file__).parent / '.mim/tools/train.py')")
    python $train examples/mmdet3d_pointpillars.py --work-dir work/pointpillars
    mld evaluate pointpillars v1

On two GPUs: `torchrun --nproc_per_node 2 $train examples/mmdet3d_pointpillars.py --launcher pytorch ...`.
The data are KITTI's, as MMDetection3D prepares them (`data/kitti`); other data, ranges or a CenterPoint config are
changed as in any MMEngine config. Records go to `MLD_HOME` (default `~/.mld`).
"""

# ruff: noqa: C408 - OpenMMLab writes its configs so
_base_ = "mmdet3d::pointpillars/pointpillars_hv_secfpn_8xb6-160e_kitti-3d-3class.py"

custom_imports = dict(imports=["ml_debugger.mmengine"], allow_failed_imports=False)
custom_hooks = [
    dict(
        type="MLDebuggerHook",
        priority="LOW",  # behind EMAHook's swap of weights, before CheckpointHook
        model_name="pointpillars",
        class_names=["Pedestrian", "Cyclist", "Car"],
        replay_train=0.25,  # training returns losses only: a quarter of the training frames is predicted after it
    )
]
