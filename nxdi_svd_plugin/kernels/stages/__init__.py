"""The device-side stages that the kernels are built from: traced Python, no copies between kernels.

Orientation: nc_matmul(stationary [K, M], moving [K, N]) = stationaryᵀ · moving, in PSUM, fp32. The intermediate is only
ever built transposed, T = (X·U)ᵀ [R, tokens] = nc_matmul(U, Xᵀ): both orientations of the output need it so,
Yᵀ = nc_matmul(V, T) and Y = nc_matmul(T, V). X is the only thing transposed, and only if it comes as [S, H].

SBUF tensors are two-dimensional, tiles side by side: xt [128, input_tiles·tokens], t [128, rank_tiles·tokens]; HBM
weights as laid out by kernels/packing.py. Temporaries are made inside the loop that uses them (one tensor an iteration,
several in flight on the device); what outlives a stage is made by the kernel and passed in.

The style is what NKI's front end is known to compile: a device loop over whole tiles and one call for the rest, as
`process_batch_tile` in neuronx_distributed/kernels/output_proj.py (aws-neuron/neuronx-distributed, SDK 2.28) does;
helpers at module level that take tensors and plain numbers; no function as an argument. The list of constructs, and
where AWS uses each, is tests/kernels/test_front_end.py.
"""
