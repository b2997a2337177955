//! Admission: who may have images in flight, decided before anything is spent on them.
//!
//! Three questions, in this order: is there a place; would the wait be longer than anybody is made to wait; would it
//! outlast the request's own deadline. The wait is predicted from the images in flight and the core time that an image
//! has taken of late, decoding and model together.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{AdmitError, Queue};
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

/// Images in flight and what one costs.
#[derive(Debug)]
pub(super) struct Admission {
    pub(super) bounds: Bounds,
    /// Core time that the decoding of an image takes, and the model's; nanoseconds, smoothed; 0 if not known.
    prepare: AtomicU64,
    infer: AtomicU64,
}

/// Images in flight, by priority.
#[derive(Debug, Default)]
pub(super) struct InFlight([usize; 2]);

impl InFlight {
    fn all(&self) -> usize {
        self.0.iter().sum()
    }

    /// Those that are served before, or in turn with, new work of a priority.
    fn ahead_of(&self, priority: Priority) -> usize {
        self.0[..=priority as usize].iter().sum()
    }
}

impl Admission {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { bounds, prepare: AtomicU64::new(0), infer: AtomicU64::new(0) }
    }

    /// Core time an image takes.
    fn pace(&self) -> u64 {
        self.prepare.load(Ordering::Relaxed) + self.infer.load(Ordering::Relaxed)
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
        Some(Self { places, priority: self.priority, images: 1, gauge, stage: self.stage })
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
        in_flight.0[self.priority as usize] -= self.images;
        // The gauge falls with the field.
    }
}

impl<R> Queue<R> {
    /// Asks for room for `images`, before anything is spent on them. All or none.
    ///
    /// # Errors
    /// A bound is reached, the deadline cannot be met, or the queue is closed.
    pub fn admit(&self, images: usize, priority: Priority, deadline: Instant) -> Result<Permit, AdmitError> {
        let mut in_flight = self.places.lock();
        self.check(&in_flight, images, priority, deadline)?;
        in_flight.0[priority as usize] += images;
        drop(in_flight);
        let (places, gauge) = (Arc::clone(&self.places), GaugeGuard::by(&self.metrics.in_flight, images as i64));
        Ok(Permit { places, priority, images, gauge, stage: Some(Stage::Decode) })
    }

    /// Whether [`Queue::admit`] would say yes at this moment: to be asked before a body is read.
    ///
    /// # Errors
    /// As [`Queue::admit`].
    pub fn would_admit(&self, images: usize, priority: Priority, deadline: Instant) -> Result<(), AdmitError> {
        self.check(&self.places.lock(), images, priority, deadline)
    }

    fn check(
        &self,
        in_flight: &InFlight,
        images: usize,
        priority: Priority,
        deadline: Instant,
    ) -> Result<(), AdmitError> {
        if self.lock().closed {
            return Err(AdmitError::Closed);
        }
        let bounds = self.admission.bounds;
        let background = in_flight.0[Priority::Background as usize] + images;
        if in_flight.all() + images > bounds.images
            || priority == Priority::Background && background > bounds.background_images
        {
            return Err(AdmitError::Full);
        }
        let wait = self.wait_behind(in_flight.ahead_of(priority));
        if priority == Priority::Interactive && wait > bounds.max_wait {
            return Err(AdmitError::WaitTooLong(wait));
        }
        // Its own time counts too, at the least one image's.
        let own = Duration::from_nanos(self.admission.pace());
        if Instant::now() + wait + own > deadline { Err(AdmitError::TooLate(wait + own)) } else { Ok(()) }
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

    fn wait_behind(&self, images: usize) -> Duration {
        let nanos = self.admission.pace().saturating_mul(images as u64) / self.cores.total().max(1) as u64;
        Duration::from_nanos(nanos)
    }

    /// Notes the core time that making a row of an image took.
    pub fn record_prepare(&self, took: Duration) {
        smooth(&self.admission.prepare, took);
    }

    /// Notes that a batch of `images` took `infer` on `cores` cores. Also told once at the start, by whoever has measured.
    pub fn record_infer(&self, images: usize, cores: usize, infer: Duration) {
        smooth(&self.admission.infer, infer * cores as u32 / images.max(1) as u32);
    }
}
