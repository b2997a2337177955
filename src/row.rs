//! The rows of a model's input.

/// A row of a model's input, in a form that is small to store. It is written out where the batch is assembled.
pub trait Row {
    /// Number of elements that [`Row::write`] writes.
    fn elements(&self) -> usize;

    /// Writes the row to `out`, which has [`Row::elements`] elements.
    fn write(&self, out: &mut [f32]);
}

impl Row for [f32] {
    fn elements(&self) -> usize {
        self.len()
    }

    fn write(&self, out: &mut [f32]) {
        out.copy_from_slice(self);
    }
}

impl<R: Row + ?Sized> Row for &R {
    fn elements(&self) -> usize {
        (**self).elements()
    }

    fn write(&self, out: &mut [f32]) {
        (**self).write(out);
    }
}
