//! What a pickle may ask for. A network of a thousand tensors with its optimizer stays below a tenth of each; together
//! the limits keep what the machine holds below some 256 MiB, whatever the file says.

/// Bytes of `data.pkl`.
pub(super) const BYTES: usize = 16 << 20;
/// Opcodes executed.
pub(super) const OPCODES: usize = 4 << 20;
/// Values made.
pub(super) const VALUES: usize = 1 << 20;
/// Values on the stack at once.
pub(super) const STACK: usize = 1 << 16;
/// Marks open at once: how deep tuples and batches nest.
pub(super) const DEPTH: usize = 256;
/// Values remembered for later.
pub(super) const MEMO: usize = 1 << 20;
/// Tensors rebuilt, those of the optimizer included.
pub(super) const TENSORS: usize = 1 << 16;
/// Bytes of one text.
pub(super) const TEXT: usize = 1 << 20;
