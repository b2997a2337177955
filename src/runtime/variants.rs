//! Sessions for other inputs and outputs than those of the classifier, opened on the first request for them.
//!
//! Each worker keeps a few of them, the most recently used ones ([`Sessions`]). What the sessions of all workers have
//! in common is in [`Variants`]. They run on ONNX Runtime's own provider in f32, whatever backend the classifier runs
//! on, in the form that was checked when the model was loaded.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};

use super::{Backend, GraphForm, PreparedGraph, RowOutputs, Runs, Runtime, RuntimeError, Session, SessionSpec};
use crate::batch::{Model, ModelFailure, Task};
use crate::model::{Backbone, Variant};
use crate::row::Row;
use ghostserve_ghostnet::Form;
use ghostserve_kernels::native_block;

/// A task that names the one of a model's graphs that it is for.
pub trait ForVariant: Task<Output = RowOutputs> + Row + Sync {
    /// The graph; `None` for the classifier.
    fn variant(&self) -> Option<&Arc<Variant>>;
}

/// Limits on the sessions of variants that each worker keeps. A session's memory is that of its largest batch.
#[derive(Clone, Copy, Debug)]
pub struct VariantLimits {
    /// Number of sessions.
    pub sessions: usize,
    /// Pixels of the images that all of these sessions take at once.
    pub pixels: usize,
}

/// Opens sessions for a model's variants.
#[derive(Debug)]
pub struct Variants {
    runtime: Runtime,
    backbone: Arc<Backbone>,
    classifier: PreparedGraph,
    spec: SessionSpec,
    limits: VariantLimits,
    registry: Mutex<VariantRegistry>,
}

#[derive(Debug, Default)]
struct VariantRegistry {
    /// Number of workers that have a session, by variant.
    open: HashMap<Arc<Variant>, usize>,
    /// Variants for which a request has a [`Claim`].
    claimed: HashSet<Arc<Variant>>,
}

/// Held by the first request for a variant that no worker has a session for. Later requests wait for the same
/// session, and do not count it as one to be opened.
#[derive(Debug)]
pub struct Claim {
    variants: Arc<Variants>,
    variant: Arc<Variant>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.variants.lock().claimed.remove(&self.variant);
    }
}

impl Variants {
    /// Creates the variants of a model whose classifier runs as `classifier` and `spec` say.
    #[must_use]
    pub fn new(
        runtime: &Runtime,
        backbone: Arc<Backbone>,
        classifier: PreparedGraph,
        spec: SessionSpec,
        limits: VariantLimits,
    ) -> Arc<Self> {
        let (runtime, registry) = (runtime.clone(), Mutex::default());
        Arc::new(Self { runtime, backbone, classifier, spec, limits, registry })
    }

    /// Whether a worker with sessions for the `open` variants has capacity for one more.
    fn fits<'a>(&self, open: impl Iterator<Item = &'a Variant>, more: &Variant) -> bool {
        let pixels = |variant: &Variant| variant.input.iter().product::<usize>() * self.max_batch(variant);
        let (count, sum) = open.fold((1, pixels(more)), |(count, sum), variant| (count + 1, sum + pixels(variant)));
        count <= self.limits.sessions && sum <= self.limits.pixels
    }

    /// Claims a variant if a session has to be opened for it: no worker has one, and no other request has claimed it.
    #[must_use]
    pub fn claim(self: &Arc<Self>, variant: &Arc<Variant>) -> Option<Claim> {
        let mut registry = self.lock();
        let new = !registry.open.contains_key(variant) && registry.claimed.insert(Arc::clone(variant));
        drop(registry);
        new.then(|| Claim { variants: Arc::clone(self), variant: Arc::clone(variant) })
    }

    fn lock(&self) -> MutexGuard<'_, VariantRegistry> {
        self.registry.lock()
    }

    /// Number of images that a session takes at most. A larger input than the classifier's has smaller batches, so
    /// that a batch is about the same amount of work.
    #[must_use]
    pub fn max_batch(&self, variant: &Variant) -> usize {
        let pixels = |[height, width]: [usize; 2]| height * width;
        (self.spec.max_batch * pixels(self.spec.input) / pixels(variant.input).max(1)).clamp(1, self.spec.max_batch)
    }

    fn session(&self, variant: &Variant) -> Result<Session, ModelFailure> {
        let failure = |e: &dyn std::fmt::Display| ModelFailure(e.to_string());
        let lower = |form| self.backbone.lower(variant, form).map_err(|e| failure(&e));
        let blocked = native_block().filter(|_| self.classifier.form() == GraphForm::Blocked);
        let prepared = match blocked {
            Some(block) => self.classifier.with_shared_constants(&lower(Form::Blocked(block))?),
            None => Ok(PreparedGraph::new(&lower(Form::Plain)?, GraphForm::Plain)),
        };
        let spec = SessionSpec {
            input: variant.input,
            max_batch: self.max_batch(variant),
            backend: Backend::default(),
            ..self.spec
        };
        let names: Vec<String> = variant.outputs.iter().map(ToString::to_string).collect();
        let session = prepared.and_then(|prepared| self.runtime.session_of(&prepared, spec, &names));
        session.map_err(|e: RuntimeError| failure(&e))
    }

    /// Records that a worker has opened (`opened`) or closed a session.
    fn count(&self, variant: &Arc<Variant>, opened: bool) {
        let open = &mut self.lock().open;
        let count = open.entry(Arc::clone(variant)).or_default();
        *count = if opened { *count + 1 } else { count.saturating_sub(1) };
        if *count == 0 {
            open.remove(variant);
        }
    }
}

/// A worker's sessions: that of the classifier, and those of the most recently used variants.
#[derive(Debug)]
pub struct Sessions {
    classifier: Session,
    variants: Option<Arc<Variants>>,
    runs: Arc<Runs>,
    /// The sessions of variants, the most recently used at the end.
    others: Vec<(Arc<Variant>, Session)>,
}

impl Sessions {
    /// Creates a worker's sessions: that of the classifier, and none yet for the variants, if the model has any.
    #[must_use]
    pub fn new(classifier: Session, variants: Option<Arc<Variants>>, runs: Arc<Runs>) -> Self {
        Self { classifier, variants, runs, others: Vec::new() }
    }

    /// Moves a variant's session to the end of the list. Returns whether it had to be opened.
    fn open(&mut self, variant: &Arc<Variant>) -> Result<bool, ModelFailure> {
        if let Some(index) = self.others.iter().position(|(other, _)| other == variant) {
            self.others[index..].rotate_left(1);
            return Ok(false);
        }
        let Some(variants) = self.variants.clone() else {
            return Err(ModelFailure("the model has no variants".to_owned()));
        };
        // Closes old sessions before the new one is opened, so that the limits hold at every moment.
        while !self.others.is_empty() && !variants.fits(self.others.iter().map(|(other, _)| &**other), variant) {
            let (old, _) = self.others.remove(0);
            variants.count(&old, false);
        }
        let session = variants.session(variant)?;
        variants.count(variant, true);
        self.others.push((Arc::clone(variant), session));
        Ok(true)
    }
}

impl Drop for Sessions {
    fn drop(&mut self) {
        if let Some(variants) = &self.variants {
            self.others.iter().for_each(|(variant, _)| variants.count(variant, false));
        }
    }
}

impl<T: ForVariant> Model<T> for Sessions {
    async fn ensure_session(&mut self, tasks: &[&T]) -> Result<bool, ModelFailure> {
        match tasks.first().and_then(|task| task.variant()) {
            Some(variant) => self.open(variant),
            None => Ok(false),
        }
    }

    async fn run(&mut self, tasks: &[&T]) -> Result<Vec<RowOutputs>, ModelFailure> {
        let (session, counts) = match tasks.first().and_then(|task| task.variant()) {
            None => (&mut self.classifier, &self.runs.classifier),
            Some(variant) => match self.others.iter_mut().find(|(other, _)| other == variant) {
                Some((_, session)) => (session, &self.runs.variants),
                None => return Err(ModelFailure("the tasks have no session".to_owned())),
            },
        };
        let start = Instant::now();
        let outputs = session.run(tasks)?;
        counts.record(tasks.len(), start.elapsed());
        Ok(outputs)
    }
}
