//! A model in the runtime: one of ONNX Runtime's sessions for each batch size.

use ort::value::{TensorElementType, TensorRef, ValueType};

use super::{RowOutputs, RuntimeError, SessionSpec};
use crate::batch::ModelFailure;
use crate::row::Row;

/// A model in the runtime, with the buffer that its batches are assembled in.
///
/// ONNX Runtime plans memory and optimises a graph for known shapes, so every batch size that is a power of two has
/// its own session. A batch of another size is split into the largest ones that add up to it.
#[derive(Debug)]
pub struct Session {
    /// Batch sizes and their sessions, largest first. A model with a fixed batch size has only that one.
    buckets: Vec<(usize, ort::session::Session)>,
    /// Whether the only session takes any batch size: a foreign graph whose batch dimension has a different name than
    /// ours.
    any_size: bool,
    input: String,
    /// Names of the outputs, in the order of [`RowOutputs`].
    outputs: Vec<String>,
    /// Channels, height, width.
    input_shape: [usize; 3],
    row_len: usize,
    classes: usize,
    buffer: Vec<f32>,
}

/// The fixed batch size of a session's input; `None` if the batch dimension is symbolic.
fn declared_batch(session: &ort::session::Session) -> Option<usize> {
    match session.inputs().first().map(|input| input.dtype()) {
        Some(ValueType::Tensor { shape, .. }) => {
            shape.first().and_then(|n| usize::try_from(*n).ok()).filter(|n| *n > 0)
        }
        _ => None,
    }
}

/// The batch sizes of the sessions for up to `max` rows, largest first.
fn bucket_sizes(max: usize) -> Vec<usize> {
    std::iter::successors(Some(1usize), |n| n.checked_mul(2))
        .take_while(|n| *n <= max.max(1))
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
        .collect()
}

impl Session {
    /// Opens the sessions for `spec` and runs each once. `open` opens one session, with its batch dimension fixed if
    /// it gets a size. The session's outputs are the scores, or `outputs`.
    pub(super) fn new(
        spec: SessionSpec,
        outputs: Option<&[String]>,
        open: impl Fn(Option<usize>) -> Result<ort::session::Session, RuntimeError>,
    ) -> Result<Self, RuntimeError> {
        let sizes = bucket_sizes(spec.max_batch);
        let largest = open(sizes.first().copied())?;
        let mut session = Self::with_largest(largest, spec, outputs, sizes.first().copied().unwrap_or(1))?;
        // If the graph does not have the requested size, it has a fixed size of its own.
        let fixed_size = session.buckets.first().map(|(size, _)| size) != sizes.first();
        let more = if session.any_size || fixed_size { &[] } else { sizes.get(1..).unwrap_or_default() };
        for &size in more {
            let smaller = open(Some(size))?;
            // The graph's fixed size may equal the largest requested size.
            if declared_batch(&smaller).is_some_and(|n| n != size) {
                break;
            }
            session.buckets.push((size, smaller));
        }
        let zeros = vec![0.0; session.row_len];
        let warm_up_sizes: Vec<_> = match session.any_size {
            true => (1..=spec.max_batch.max(1)).collect(),
            false => session.buckets.iter().map(|(size, _)| *size).collect(),
        };
        for size in warm_up_sizes {
            let rows = vec![&zeros[..]; size];
            session.run(&rows).map_err(|e| RuntimeError::Load(e.to_string()))?;
        }
        Ok(session)
    }

    /// Checks the inputs and outputs of the session for the largest batch size, `size`.
    fn with_largest(
        session: ort::session::Session,
        spec: SessionSpec,
        outputs: Option<&[String]>,
        size: usize,
    ) -> Result<Self, RuntimeError> {
        let [height, width] = spec.input;
        let shape = [3, height, width];

        let expected = format!("one f32 tensor Nx3x{height}x{width}");
        let wrong = |what, expected: &str, outlets: &[ort::value::Outlet]| {
            let found: Vec<_> = outlets.iter().map(|o| format!("{}: {}", o.name(), o.dtype())).collect();
            RuntimeError::Interface { what, expected: expected.to_owned(), found: found.join(", ") }
        };
        let [input] = session.inputs() else { return Err(wrong("input", &expected, session.inputs())) };
        // A symbolic dimension is −1 and fits any size.
        let fits = |dim: i64, size: usize| dim < 0 || dim == size as i64;
        let batch = match input.dtype() {
            ValueType::Tensor { ty: TensorElementType::Float32, shape: dims, .. }
                if dims.len() == 4 && dims[1..].iter().zip(shape).all(|(d, s)| fits(*d, s)) =>
            {
                dims[0]
            }
            _ => return Err(wrong("input", &expected, session.inputs())),
        };

        let expected = format!("an f32 tensor with {} scores an image, one a label", spec.classes);
        let is_scores = |outlet: &&ort::value::Outlet| match outlet.dtype() {
            ValueType::Tensor { ty: TensorElementType::Float32, shape: dims, .. } if dims.len() >= 2 => {
                fits(dims[1], spec.classes) && dims[2..].iter().all(|d| fits(*d, 1))
            }
            _ => false,
        };
        let outputs = match outputs {
            Some(names) => names.to_vec(),
            None => match session.outputs().iter().find(is_scores) {
                Some(scores) => vec![scores.name().to_owned()],
                None => return Err(wrong("output", &expected, session.outputs())),
            },
        };
        Ok(Self {
            input: input.name().to_owned(),
            outputs,
            input_shape: shape,
            row_len: shape.iter().product(),
            classes: spec.classes,
            any_size: usize::try_from(batch).is_err(),
            buckets: vec![(usize::try_from(batch).ok().filter(|n| *n > 0).unwrap_or(size), session)],
            buffer: Vec::new(),
        })
    }

    /// The batch sizes that have their own session, largest first; empty if one session takes any size.
    #[must_use]
    pub fn batch_sizes(&self) -> Vec<usize> {
        self.buckets.iter().filter(|_| !self.any_size).map(|(size, _)| *size).collect()
    }

    /// Runs rows of 3 × height × width elements. Returns one row of scores each.
    ///
    /// # Errors
    /// A row has a different length, or the runtime fails.
    pub fn run_rows<R: Row>(&mut self, rows: &[R]) -> Result<Vec<Vec<f32>>, ModelFailure> {
        let classes = self.classes;
        let scores = |outputs: RowOutputs| match outputs.data(0) {
            scores if scores.len() == classes => Ok(scores.to_vec()),
            other => Err(ModelFailure(format!("expected rows of {classes} scores, found {}", other.len()))),
        };
        self.run(rows)?.into_iter().map(scores).collect()
    }

    /// Runs rows of 3 × height × width elements. Returns the outputs of the graph for each.
    ///
    /// # Errors
    /// A row has a different length, or the runtime fails.
    pub fn run<R: Row>(&mut self, rows: &[R]) -> Result<Vec<RowOutputs>, ModelFailure> {
        let mut outputs = Vec::with_capacity(rows.len());
        if self.any_size {
            self.run_bucket(0, rows, &mut outputs)?;
            return Ok(outputs);
        }
        let mut rest = rows;
        while !rest.is_empty() {
            // The largest session that the rows fill, or else the smallest, which then gets zeros.
            let filled = self.buckets.iter().position(|(size, _)| *size <= rest.len());
            let bucket = filled.unwrap_or(self.buckets.len() - 1);
            let (now, later) = rest.split_at(rest.len().min(self.buckets[bucket].0));
            self.run_bucket(bucket, now, &mut outputs)?;
            rest = later;
        }
        Ok(outputs)
    }

    fn run_bucket<R: Row>(
        &mut self,
        bucket: usize,
        rows: &[R],
        outputs: &mut Vec<RowOutputs>,
    ) -> Result<(), ModelFailure> {
        let (batch, session) = &mut self.buckets[bucket];
        let batch = if self.any_size { rows.len() } else { *batch };
        let failure = |e: &dyn std::fmt::Display| ModelFailure(e.to_string());
        if let Some(row) = rows.iter().find(|row| row.elements() != self.row_len) {
            return Err(ModelFailure(format!("expected rows of {} elements, found {}", self.row_len, row.elements())));
        }
        self.buffer.resize(batch * self.row_len, 0.0);
        let (filled, rest) = self.buffer.split_at_mut(rows.len() * self.row_len);
        filled.chunks_exact_mut(self.row_len).zip(rows).for_each(|(slot, row)| row.write(slot));
        // A model with a fixed batch size gets zeros in place of the missing images.
        rest.fill(0.0);
        let [c, h, w] = self.input_shape;
        let input = TensorRef::from_array_view(([batch, c, h, w], &self.buffer[..])).map_err(|e| failure(&e))?;
        let mut result = session.run(ort::inputs![self.input.as_str() => input]).map_err(|e| failure(&e))?;
        let mut tensors = Vec::with_capacity(self.outputs.len());
        for name in &self.outputs {
            let Some(tensor) = result.remove(name) else {
                return Err(ModelFailure(format!("the output `{name}` is missing")));
            };
            tensors.push(tensor);
        }
        outputs.extend(RowOutputs::of_batch(tensors, batch, rows.len())?);
        Ok(())
    }
}
