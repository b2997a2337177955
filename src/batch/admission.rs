//! Admission: who may have images in flight, decided before anything is spent on them.
//!
//! Three questions, in this order: is there a place; would the wait be longer than anybody is made to wait; would it
//! outlast the request's own deadline. The wait is predicted from the images in flight and the core time that an image
//! has taken of late, decoding and model together; what is more work for the model than an image of its own size counts
//! for more.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{AdmitError, Queue, Task};
use crate::cores::Priority;
use crate::telemetry::{Dropped, GaugeGuard, ModelMetrics, Stage};

/// How much a queue takes on.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Images admitted at once: being decoded, waiting and running.
    pub images: usize,
    /// How many of them background work may have.
    pub background_images: usize,
    /// The longest predicted wait at which interactive work is still admitted. Background work waits for as long as its
    /// deadline lets it.
    pub max_wait: Duration,
}

/// The work of running an image of the model's own size, in the unit that work is counted in.
pub const ONE_RUN: u64 = 100;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    /// Images, for which there is room or not.
    pub images: usize,
    /// The model's work on each, in hundredths of that on an image of its own size.
    pub work: u64,
    /// Whether the model has to get ready for them first.
    pub opens: bool,
    /// Whose work it is.
    pub priority: Priority,
    /// When it is no longer wanted.
    pub deadline: Instant,
}

/// What an image costs.
#[derive(Debug)]
pub(super) struct Admission {
    pub(super) bounds: Bounds,
    /// Core time that the decoding of an image takes, [`ONE_RUN`] of the model, and its getting ready for a new sort of task;
    /// nanoseconds, smoothed; 0 if not known.
    prepare: AtomicU64,
    infer: AtomicU64,
    open: AtomicU64,
}

/// What there is to do.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    images: usize,
    work: u64,
    /// Times that the model has to get ready.
    opens: u64,
}

impl Load {
    fn add(&mut self, other: Self) {
        self.images += other.images;
        self.work += other.work;
        self.opens += other.opens;
    }

    fn take_away(&mut self, other: Self) {
        self.images -= other.images;
        self.work -= other.work;
        self.opens -= other.opens;
    }

    fn sum(loads: &[Self]) -> Self {
        let mut sum = Self::default();
        loads.iter().for_each(|load| sum.add(*load));
        sum
    }
}

/// What is in flight, by priority.
#[derive(Debug, Default)]
pub(super) struct InFlight([Load; 2]);

impl InFlight {
    fn all(&self) -> Load {
        Load::sum(&self.0)
    }

    /// What is served before, or in turn with, new work of a priority.
    fn ahead_of(&self, priority: Priority) -> Load {
        Load::sum(&self.0[..=priority as usize])
    }
}

impl Admission {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { bounds, prepare: AtomicU64::new(0), infer: AtomicU64::new(0), open: AtomicU64::new(0) }
    }

    /// Core time that some work takes, nanoseconds.
    fn cost(&self, load: Load) -> u64 {
        let prepare = self.prepare.load(Ordering::Relaxed).saturating_mul(load.images as u64);
        let infer = self.infer.load(Ordering::Relaxed).saturating_mul(load.work) / ONE_RUN;
        let open = self.open.load(Ordering::Relaxed).saturating_mul(load.opens);
        prepare.saturating_add(infer).saturating_add(open)
    }
}

/// Takes an eighth of every new value: a few tens of them to forget. Threads may overwrite each other; either value will do.
fn smooth(average: &AtomicU64, new: Duration) {
    let new = new.as_nanos() as u64;
    let old = average.load(Ordering::Relaxed);
    average.store(if old == 0 { new } else { old - old / 8 + new / 8 }, Ordering::Relaxed);
}

/// The right to have some images in flight. Freed when dropped; images that were not answered by then count as dropped in
/// the stage they had reached.
#[derive(Debug)]
pub struct Permit {
    places: Arc<Places>,
    priority: Priority,
    images: usize,
    /// Of each image.
    work: u64,
    opens: bool,
    gauge: GaugeGuard,
    /// `None` once the images' fate is known.
    stage: Option<Stage>,
}

/// Where permits come from, without the queue's rows.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) in_flight: Mutex<InFlight>,
    pub(super) metrics: ModelMetrics,
}

impl Places {
    pub(super) fn lock(&self) -> MutexGuard<'_, InFlight> {
        // Numbers, changed one at a time.
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit {
    /// Takes the right for one image out of this one; `None` when there is none left.
    pub fn split_one(&mut self) -> Option<Self> {
        self.images = self.images.checked_sub(1)?;
        let (places, gauge) = (Arc::clone(&self.places), self.gauge.split_one());
        // The first one gets the model ready for the others.
        let opens = std::mem::take(&mut self.opens);
        Some(Self { places, priority: self.priority, images: 1, work: self.work, opens, gauge, stage: self.stage })
    }

    /// The model's work on its images, as [`Demand`] counts it.
    pub(super) fn work(&self) -> u64 {
        self.work * self.images as u64
    }

    fn load(&self) -> Load {
        Load { images: self.images, work: self.work(), opens: self.opens.into() }
    }

    /// Whose work it is.
    #[must_use]
    pub fn priority(&self) -> Priority {
        self.priority
    }

    /// Work on the images begins; until they are settled they count as dropped if the permit is.
    pub fn begin(&mut self) {
        self.stage = Some(Stage::Decode);
    }

    /// The images have got to another stage.
    pub(super) fn reach(&mut self, stage: Stage) {
        self.stage = Some(stage);
    }

    /// The images have an answer, good or bad: they are not dropped.
    pub fn settle(&mut self) {
        self.stage = None;
    }

    /// The images' deadline has passed where they are.
    pub fn expire(&mut self) {
        if let Some(stage) = self.stage.take() {
            self.places.metrics.dropped(Dropped::Expired, stage).inc_by(self.images as u64);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(stage) = self.stage
            && self.images > 0
        {
            self.places.metrics.dropped(Dropped::Cancelled, stage).inc_by(self.images as u64);
        }
        let mut in_flight = self.places.lock();
        in_flight.0[self.priority as usize].take_away(self.load());
        // The gauge falls with the field.
    }
}

impl<T: Task> Queue<T> {
    /// Asks for room, before anything is spent on the images. All or none.
    ///
    /// # Errors
    /// A bound is reached, the deadline cannot be met, or the queue is closed.
    pub fn admit(&self, demand: Demand) -> Result<Permit, AdmitError> {
        let Demand { images, work, opens, priority, .. } = demand;
        let mut in_flight = self.places.lock();
        self.check(&in_flight, demand)?;
        in_flight.0[priority as usize].add(demand.load());
        drop(in_flight);
        let (places, gauge) = (Arc::clone(&self.places), GaugeGuard::by(&self.metrics.in_flight, images as i64));
        Ok(Permit { places, priority, images, work, opens, gauge, stage: Some(Stage::Decode) })
    }

    /// Whether [`Queue::admit`] would say yes at this moment: to be asked before a body is read.
    ///
    /// # Errors
    /// As [`Queue::admit`].
    pub fn would_admit(&self, demand: Demand) -> Result<(), AdmitError> {
        self.check(&self.places.lock(), demand)
    }

    fn check(&self, in_flight: &InFlight, demand: Demand) -> Result<(), AdmitError> {
        if self.lock().closed {
            return Err(AdmitError::Closed);
        }
        let bounds = self.admission.bounds;
        let background = in_flight.0[Priority::Background as usize].images + demand.images;
        if in_flight.all().images + demand.images > bounds.images
            || demand.priority == Priority::Background && background > bounds.background_images
        {
            return Err(AdmitError::Full);
        }
        let wait = self.wait_behind(in_flight.ahead_of(demand.priority));
        if demand.priority == Priority::Interactive && wait > bounds.max_wait {
            return Err(AdmitError::WaitTooLong(wait));
        }
        // Its own time counts too, at the least one image's.
        let first = Load { images: 1, work: demand.work, opens: demand.opens.into() };
        let time = wait + Duration::from_nanos(self.admission.cost(first));
        if Instant::now() + time > demand.deadline { Err(AdmitError::TooLate(time)) } else { Ok(()) }
    }

    /// How long new interactive work would wait for a core.
    #[must_use]
    pub fn predicted_wait(&self) -> Duration {
        let ahead = self.places.lock().ahead_of(Priority::Interactive);
        self.wait_behind(ahead)
    }

    /// How long to stay away after a refusal: until what is in flight is down to what would be admitted again, and at least
    /// until the bound on the wait is met.
    #[must_use]
    pub fn backlog(&self) -> Duration {
        let all = self.places.lock().all();
        self.wait_behind(all)
    }

    fn wait_behind(&self, load: Load) -> Duration {
        Duration::from_nanos(self.admission.cost(load) / self.cores.total().max(1) as u64)
    }

    /// Notes the core time that making a task of an image took.
    pub fn record_prepare(&self, took: Duration) {
        smooth(&self.admission.prepare, took);
    }

    /// Notes that so much work took the model `infer` on `cores` cores. Also told once at the start, by whoever has measured.
    pub fn record_infer(&self, work: u64, cores: usize, infer: Duration) {
        let one = infer.as_nanos() * cores as u128 * u128::from(ONE_RUN) / u128::from(work.max(1));
        smooth(&self.admission.infer, Duration::from_nanos(u64::try_from(one).unwrap_or(u64::MAX)));
    }

    /// Notes that the model got ready for a new sort of task in `took`, on `cores` cores.
    pub fn record_open(&self, cores: usize, took: Duration) {
        self.metrics.opened.inc();
        smooth(&self.admission.open, took * cores as u32);
    }
}

impl Demand {
    fn load(&self) -> Load {
        Load { images: self.images, work: self.work * self.images as u64, opens: self.opens.into() }
    }
}
