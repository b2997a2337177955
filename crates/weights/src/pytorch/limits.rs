//! The limits of a pickle. A network of a thousand tensors with its optimizer stays below a tenth of each. Together the
//! limits keep the memory of the pickle machine below about 256 MiB for any file.

/// Bytes of `data.pkl`.
pub(super) const BYTES: usize = 16 << 20;
/// Opcodes executed.
pub(super) const OPCODES: usize = 4 << 20;
/// Values created.
pub(super) const VALUES: usize = 1 << 20;
/// Values on the stack at once.
pub(super) const STACK: usize = 1 << 16;
/// Marks open at once: how deep tuples and batches nest.
pub(super) const DEPTH: usize = 256;
/// Values in the memo.
pub(super) const MEMO: usize = 1 << 20;
/// Tensors rebuilt, those of the optimizer included.
pub(super) const TENSORS: usize = 1 << 16;
/// Pairs of key and tensor in the state dict. The memo lets a pickle put one tensor under many keys, so [`TENSORS`]
/// does not bound them.
pub(super) const PAIRS: usize = 1 << 16;
/// Bytes of one string.
pub(super) const TEXT: usize = 1 << 20;
