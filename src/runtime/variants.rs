//! Sessions for other inputs and outputs than the classifier's, made when they are first asked for.
//!
//! Each worker keeps a few of them, those used last ([`Sessions`]); what they have in common is in one place for all workers
//! ([`Variants`]). They run on ONNX Runtime's own provider in f32, whatever the classifier runs on, in the form that was proved
//! when the model was loaded.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::{Backend, Prepared, RowOutputs, Runs, Runtime, RuntimeError, Session, SessionSpec};
use crate::batch::{Model, ModelFailure, Row, Task};
use crate::model::{Backbone, Variant};
use ghostserve_ghostnet::Form;
use ghostserve_kernels::native_block;

/// A task that says which of a model's graphs it is for.
pub trait ForVariant: Task<Output = RowOutputs> + Row + Sync {
    /// The graph; `None` for the classifier.
    fn variant(&self) -> Option<&Arc<Variant>>;
}

/// How sessions of a model's variants are made.
#[derive(Debug)]
pub struct Variants {
    runtime: Runtime,
    backbone: Arc<Backbone>,
    classifier: Prepared,
    spec: SessionSpec,
    /// Sessions that each worker keeps, and pixels that they may take together.
    keep: (usize, usize),
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// How many workers have a session.
    open: HashMap<Arc<Variant>, usize>,
    /// Those for which somebody is on the way.
    claimed: HashSet<Arc<Variant>>,
}

/// The first to ask for a variant that no worker has a session for. Others who ask meanwhile wait for the same session, and are
/// not told that there is one to be made.
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
    /// For a model whose classifier runs as `classifier` and `spec` say. Each worker keeps up to `keep.0` sessions, fewer if the
    /// images that they take at once have more than `keep.1` pixels: a session's memory is that of its largest batch.
    #[must_use]
    pub fn new(
        runtime: &Runtime,
        backbone: Arc<Backbone>,
        classifier: Prepared,
        spec: SessionSpec,
        keep: (usize, usize),
    ) -> Arc<Self> {
        let (runtime, known) = (runtime.clone(), Mutex::default());
        Arc::new(Self { runtime, backbone, classifier, spec, keep, known })
    }

    /// Whether a worker that keeps some sessions has room for one more.
    fn fits<'a>(&self, kept: impl Iterator<Item = &'a Variant>, more: &Variant) -> bool {
        let pixels = |variant: &Variant| variant.input.iter().product::<usize>() * self.most_together(variant);
        let (count, sum) = kept.fold((1, pixels(more)), |(count, sum), kept| (count + 1, sum + pixels(kept)));
        count <= self.keep.0 && sum <= self.keep.1
    }

    /// Whether a session has to be made for whoever asks for a variant now: no worker has one, and nobody has claimed it before.
    #[must_use]
    pub fn claim(self: &Arc<Self>, variant: &Arc<Variant>) -> Option<Claim> {
        let mut known = self.lock();
        let new = !known.open.contains_key(variant) && known.claimed.insert(Arc::clone(variant));
        drop(known);
        new.then(|| Claim { variants: Arc::clone(self), variant: Arc::clone(variant) })
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Nothing that runs under the lock can leave it half changed.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Images that a session takes at most: fewer than the classifier of a larger input, so that a batch is about as much work.
    #[must_use]
    pub fn most_together(&self, variant: &Variant) -> usize {
        let pixels = |[height, width]: [usize; 2]| height * width;
        (self.spec.max_batch * pixels(self.spec.input) / pixels(variant.input).max(1)).clamp(1, self.spec.max_batch)
    }

    fn session(&self, variant: &Variant) -> Result<Session, ModelFailure> {
        let failure = |e: &dyn std::fmt::Display| ModelFailure(e.to_string());
        let lower = |form| self.backbone.lower(variant, form).map_err(|e| failure(&e));
        let blocked = native_block().filter(|_| self.classifier.form() == "blocked");
        let prepared = match blocked {
            Some(block) => self.classifier.relative(&lower(Form::Blocked(block))?),
            None => Ok(Prepared::alone(&lower(Form::Plain)?, "plain")),
        };
        let spec = SessionSpec {
            input: variant.input,
            max_batch: self.most_together(variant),
            backend: Backend::default(),
            ..self.spec
        };
        let names: Vec<String> = variant.outputs.iter().map(ToString::to_string).collect();
        let session = prepared.and_then(|prepared| self.runtime.session_of(&prepared, spec, &names));
        session.map_err(|e: RuntimeError| failure(&e))
    }

    fn count(&self, variant: &Arc<Variant>, opened: bool) {
        let open = &mut self.lock().open;
        let count = open.entry(Arc::clone(variant)).or_default();
        *count = if opened { *count + 1 } else { count.saturating_sub(1) };
        if *count == 0 {
            open.remove(variant);
        }
    }
}

/// A worker's sessions: the classifier's, and those of the variants used last.
#[derive(Debug)]
pub struct Sessions {
    classifier: Session,
    variants: Option<Arc<Variants>>,
    runs: Arc<Runs>,
    /// The one used last at the end.
    others: Vec<(Arc<Variant>, Session)>,
}

impl Sessions {
    /// The classifier's, and room for others where the model has variants.
    #[must_use]
    pub fn new(classifier: Session, variants: Option<Arc<Variants>>, runs: Arc<Runs>) -> Self {
        Self { classifier, variants, runs, others: Vec::new() }
    }

    /// Has a variant's session at the end of the list; says whether it had to be made.
    fn open(&mut self, variant: &Arc<Variant>) -> Result<bool, ModelFailure> {
        if let Some(at) = self.others.iter().position(|(other, _)| other == variant) {
            self.others[at..].rotate_left(1);
            return Ok(false);
        }
        let Some(variants) = self.variants.clone() else {
            return Err(ModelFailure("the model has no variants".to_owned()));
        };
        // Before the new one is made, so that there are never more.
        while !self.others.is_empty() && !variants.fits(self.others.iter().map(|(kept, _)| &**kept), variant) {
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
    async fn prepare(&mut self, tasks: &[&T]) -> Result<bool, ModelFailure> {
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
                None => return Err(ModelFailure("the tasks were not prepared".to_owned())),
            },
        };
        let start = Instant::now();
        let answers = session.run(tasks)?;
        counts.record(tasks.len(), start.elapsed());
        Ok(answers)
    }
}
