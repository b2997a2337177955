//! Admission: decides whether images may be in flight, before anything is spent on them.
//!
//! Three checks, in this order: whether there is capacity; whether the predicted wait is longer than the limit on it;
//! whether the images would be done after the request's deadline. The wait is predicted from the images in flight and
//! the smoothed core time per image, decoding and model together. An image that is more work for the model than one
//! of the model's own size counts for more.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

use super::{AdmitError, Queue, Task};
use crate::cores::Priority;
use crate::fair_share::Client;
use crate::telemetry::{DropReason, GaugeGuard, ModelMetrics, Stage};

/// How much work a queue admits.
#[derive(Clone, Copy, Debug)]
pub struct AdmissionLimits {
    /// Images in flight: being decoded, waiting and running.
    pub images: usize,
    /// Number of them that may be background work.
    pub background_images: usize,
    /// The longest predicted wait at which interactive work is still admitted. Only the deadline limits how long
    /// background work waits.
    pub max_wait: Duration,
}

/// The model's work on one image of the model's own size, in the unit that work is counted in.
pub const ONE_RUN: u64 = 100;

/// A request to admit images.
#[derive(Clone, Copy, Debug)]
pub struct AdmissionRequest {
    /// Number of images. They are admitted together or not at all.
    pub images: usize,
    /// Expected time to decode all of them; the smoothed time of earlier images is used if it is not known.
    pub decode: Option<Duration>,
    /// The model's work on each image, in hundredths of that on an image of its own size.
    pub work: u64,
    /// Whether the model has to open a session for them first.
    pub opens: bool,
    /// Whether a client waits for the images, or they are background work.
    pub priority: Priority,
    /// The client that sent the images.
    pub client: Client,
    /// The time after which the client does not use the output any more.
    pub deadline: Instant,
}

/// The limits, and the smoothed costs that waits are predicted from.
#[derive(Debug)]
pub(super) struct Admission {
    pub(super) limits: AdmissionLimits,
    /// Core time to decode an image, in nanoseconds, smoothed; 0 if not known.
    decode: AtomicU64,
    /// Core time of [`ONE_RUN`] of the model, likewise.
    run: AtomicU64,
    /// Core time to open a session for a new kind of task, likewise.
    open: AtomicU64,
}

/// An amount of work that is still to be done.
#[derive(Clone, Copy, Debug, Default)]
struct PendingWork {
    images: usize,
    /// Images whose decoding time is not known.
    unknown: usize,
    /// Nanoseconds to decode the other images.
    decode: u64,
    /// The model's work on all images; see [`ONE_RUN`].
    model: u64,
    /// Sessions that the model has to open.
    opens: u64,
}

impl PendingWork {
    fn new(images: usize, decode: Option<u64>, model: u64, opens: bool) -> Self {
        let unknown = if decode.is_some() { 0 } else { images };
        Self { images, unknown, decode: decode.unwrap_or(0), model, opens: opens.into() }
    }

    fn add(&mut self, other: Self) {
        self.images += other.images;
        self.unknown += other.unknown;
        self.decode += other.decode;
        self.model += other.model;
        self.opens += other.opens;
    }

    fn subtract(&mut self, other: Self) {
        self.images -= other.images;
        self.unknown -= other.unknown;
        self.decode -= other.decode;
        self.model -= other.model;
        self.opens -= other.opens;
    }

    fn is_empty(&self) -> bool {
        self.images == 0 && self.model == 0 && self.decode == 0 && self.opens == 0
    }

    fn sum(parts: &[Self]) -> Self {
        let mut sum = Self::default();
        parts.iter().for_each(|part| sum.add(*part));
        sum
    }
}

/// The work in flight: by priority, and within each priority by client.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    totals: [PendingWork; 2],
    by_client: [HashMap<Client, PendingWork>; 2],
}

impl InFlight {
    fn all(&self) -> PendingWork {
        PendingWork::sum(&self.totals)
    }

    fn add(&mut self, priority: Priority, client: Client, work: PendingWork) {
        self.totals[priority as usize].add(work);
        self.by_client[priority as usize].entry(client).or_default().add(work);
    }

    fn subtract(&mut self, priority: Priority, client: Client, work: PendingWork) {
        self.totals[priority as usize].subtract(work);
        let clients = &mut self.by_client[priority as usize];
        if let Some(of_client) = clients.get_mut(&client) {
            of_client.subtract(work);
            if of_client.is_empty() {
                clients.remove(&client);
            }
        }
    }

    /// Core time spent on other work before new work of a client is done, when clients have equal shares of the
    /// cores: the client's earlier work, and of each other client at most as much as the client's earlier and new
    /// work together. Nanoseconds.
    fn ahead_of_client(&self, request: &AdmissionRequest, admission: &Admission) -> u64 {
        let ranks = &self.by_client[..=request.priority as usize];
        let clients = || ranks.iter().flatten();
        let own =
            clients().filter(|(client, _)| **client == request.client).map(|(_, work)| admission.cost(*work)).sum();
        let new = admission.cost(request.pending_work());
        let share = u64::saturating_add(own, new);
        let others = clients().filter(|(client, _)| **client != request.client);
        others.fold(own, |sum, (_, work)| sum.saturating_add(admission.cost(*work).min(share)))
    }

    /// The work that is served before new work of a priority, or in turn with it.
    fn ahead_of(&self, priority: Priority) -> PendingWork {
        PendingWork::sum(&self.totals[..=priority as usize])
    }
}

impl Admission {
    pub(super) fn new(limits: AdmissionLimits) -> Self {
        Self { limits, decode: AtomicU64::new(0), run: AtomicU64::new(0), open: AtomicU64::new(0) }
    }

    /// Core time that some work takes, nanoseconds.
    fn cost(&self, work: PendingWork) -> u64 {
        let unknown = self.decode.load(Ordering::Relaxed).saturating_mul(work.unknown as u64);
        let decode = unknown.saturating_add(work.decode);
        let run = self.run.load(Ordering::Relaxed).saturating_mul(work.model) / ONE_RUN;
        let open = self.open.load(Ordering::Relaxed).saturating_mul(work.opens);
        decode.saturating_add(run).saturating_add(open)
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Moves an average towards a new value by an eighth of the difference, so that it follows within a few tens of values.
/// Threads may overwrite each other's value; either is good enough.
fn smooth(average: &AtomicU64, new: Duration) {
    let new = new.as_nanos() as u64;
    let old = average.load(Ordering::Relaxed);
    average.store(if old == 0 { new } else { old - old / 8 + new / 8 }, Ordering::Relaxed);
}

/// The permission to have some images in flight. Dropping it releases their capacity. Images that have no output by
/// then count as dropped in the stage they had reached.
#[derive(Debug)]
pub struct Permit {
    counter: Arc<InFlightCounter>,
    priority: Priority,
    client: Client,
    images: usize,
    /// Nanoseconds to decode all images, if known.
    decode: Option<u64>,
    /// The model's work on each image.
    work: u64,
    opens: bool,
    /// Whether the images are not counted at the moment, because they wait where they keep no other image from a core.
    is_set_aside: bool,
    gauge: GaugeGuard,
    /// `None` once the images have their outcome.
    stage: Option<Stage>,
}

/// The count of the work in flight, which permits change. It is separate from the queue's tasks.
#[derive(Debug)]
pub(super) struct InFlightCounter {
    pub(super) in_flight: Mutex<InFlight>,
    /// Notified when less work is in flight than before.
    pub(super) freed: Notify,
    pub(super) metrics: ModelMetrics,
}

impl InFlightCounter {
    pub(super) fn lock(&self) -> MutexGuard<'_, InFlight> {
        self.in_flight.lock()
    }
}

impl Permit {
    /// Splits off a permit for one image whose decoding takes `decode`; `None` if no image is left.
    pub fn split_one(&mut self, decode: Duration) -> Option<Self> {
        self.images = self.images.checked_sub(1)?;
        let (counter, gauge) = (Arc::clone(&self.counter), self.gauge.split_one());
        // The first image opens the session that the others use.
        let opens = std::mem::take(&mut self.opens);
        let decode = self.decode.as_mut().map(|all| {
            let one = nanos(decode).min(*all);
            *all -= one;
            one
        });
        let Self { priority, client, work, stage, .. } = *self;
        Some(Self { counter, priority, client, images: 1, decode, work, opens, is_set_aside: false, gauge, stage })
    }

    /// Stops counting the images while they wait for something other than the cores and the model; `false` counts
    /// them again.
    pub fn set_aside(&mut self, aside: bool) {
        if aside != self.is_set_aside {
            let counter = Arc::clone(&self.counter);
            let mut in_flight = counter.lock();
            if aside {
                in_flight.subtract(self.priority, self.client, self.pending_work());
                self.is_set_aside = true;
                drop(in_flight);
                counter.freed.notify_waiters();
            } else {
                self.is_set_aside = false;
                in_flight.add(self.priority, self.client, self.pending_work());
            }
        }
    }

    /// The model's work on the images, in the unit of [`AdmissionRequest::work`].
    pub(super) fn work(&self) -> u64 {
        self.work * self.images as u64
    }

    /// The work that the permit counts for.
    fn pending_work(&self) -> PendingWork {
        if self.is_set_aside {
            return PendingWork::default();
        }
        PendingWork::new(self.images, self.decode, self.work(), self.opens)
    }

    /// The client that sent the images.
    pub(super) fn client(&self) -> Client {
        self.client
    }

    /// Whether a client waits for the images, or they are background work.
    #[must_use]
    pub fn priority(&self) -> Priority {
        self.priority
    }

    /// Marks the start of the work on the images. Until they are settled, they count as dropped if the permit is
    /// dropped.
    pub fn begin(&mut self) {
        self.stage = Some(Stage::Decode);
    }

    /// Marks that the images have reached another stage.
    pub(super) fn reach(&mut self, stage: Stage) {
        self.stage = Some(stage);
    }

    /// Marks that the images have an outcome, good or bad: they do not count as dropped.
    pub fn settle(&mut self) {
        self.stage = None;
    }

    /// Counts the images as expired in the stage they have reached.
    pub fn expire(&mut self) {
        if let Some(stage) = self.stage.take() {
            self.counter.metrics.dropped(DropReason::Expired, stage).inc_by(self.images as u64);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(stage) = self.stage
            && self.images > 0
        {
            self.counter.metrics.dropped(DropReason::Cancelled, stage).inc_by(self.images as u64);
        }
        // What remains of a permit that was split, and one that is set aside, counts for nothing.
        let work = self.pending_work();
        if !work.is_empty() {
            self.counter.lock().subtract(self.priority, self.client, work);
            self.counter.freed.notify_waiters();
        }
        // Dropping the field lowers the gauge.
    }
}

impl<T: Task> Queue<T> {
    /// Admits images before anything is spent on them: all or none.
    ///
    /// # Errors
    /// A limit is reached, the deadline cannot be met, or the queue is closed.
    pub fn admit(&self, request: AdmissionRequest) -> Result<Permit, AdmitError> {
        let AdmissionRequest { images, decode, work, opens, priority, client, .. } = request;
        self.check_open()?;
        let mut in_flight = self.counter.lock();
        self.check(&in_flight, request)?;
        in_flight.add(priority, client, request.pending_work());
        drop(in_flight);
        let (counter, gauge) = (Arc::clone(&self.counter), GaugeGuard::by(&self.metrics.in_flight, images as i64));
        let (decode, stage) = (decode.map(nanos), Some(Stage::Decode));
        Ok(Permit { counter, priority, client, images, decode, work, opens, is_set_aside: false, gauge, stage })
    }

    /// Whether [`Queue::admit`] would admit the images at this moment. To be called before a body is read.
    ///
    /// # Errors
    /// As [`Queue::admit`].
    pub fn would_admit(&self, request: AdmissionRequest) -> Result<(), AdmitError> {
        self.check_open()?;
        self.check(&self.counter.lock(), request)
    }

    /// Fails if the queue is closed. To be called before the counter is locked: the two locks are never held together.
    fn check_open(&self) -> Result<(), AdmitError> {
        if self.lock().closed { Err(AdmitError::Closed) } else { Ok(()) }
    }

    fn check(&self, in_flight: &InFlight, request: AdmissionRequest) -> Result<(), AdmitError> {
        let limits = self.admission.limits;
        let background = in_flight.totals[Priority::Background as usize].images + request.images;
        if in_flight.all().images + request.images > limits.images
            || request.priority == Priority::Background && background > limits.background_images
        {
            return Err(AdmitError::Full);
        }
        // Clients take turns for the cores: the work that others sent before does not get a client rejected.
        let all = self.wait_behind(in_flight.ahead_of(request.priority));
        let wait = all.min(self.wall_time(in_flight.ahead_of_client(&request, &self.admission)));
        if request.priority == Priority::Interactive && wait > limits.max_wait {
            return Err(AdmitError::WaitTooLong(wait));
        }
        // The request's own time counts too: at least that of its first image.
        let decode = request.decode.map(|all| nanos(all) / request.images.max(1) as u64);
        let first = PendingWork::new(1, decode, request.work, request.opens);
        let time = wait + Duration::from_nanos(self.admission.cost(first));
        if Instant::now() + time > request.deadline { Err(AdmitError::TooLate(time)) } else { Ok(()) }
    }

    /// Completes when work in flight is done after this call. A caller that waits for capacity calls it before it asks
    /// [`Queue::would_admit`], so that it misses nothing in between.
    pub fn capacity_freed(&self) -> Notified<'_> {
        self.counter.freed.notified()
    }

    /// Predicted time that new interactive work waits for a core.
    #[must_use]
    pub fn predicted_wait(&self) -> Duration {
        let ahead = self.counter.lock().ahead_of(Priority::Interactive);
        self.wait_behind(ahead)
    }

    /// How long a rejected client should wait before it tries again: until the work now in flight is done, so that
    /// there is capacity again and the predicted wait is within its limit.
    #[must_use]
    pub fn backlog(&self) -> Duration {
        let all = self.counter.lock().all();
        self.wait_behind(all)
    }

    /// Whether no images are in flight.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.metrics.in_flight.get() == 0
    }

    fn wait_behind(&self, work: PendingWork) -> Duration {
        self.wall_time(self.admission.cost(work))
    }

    /// The time in which all cores together do `core_nanos` of core time.
    fn wall_time(&self, core_nanos: u64) -> Duration {
        Duration::from_nanos(core_nanos / self.cores.total().max(1) as u64)
    }

    /// Records the core time that decoding an image into a task took.
    pub fn record_decode(&self, took: Duration) {
        smooth(&self.admission.decode, took);
    }

    /// Records that the model did `work` in the time `infer` on `cores` cores. The server also calls it once at the
    /// start, with the time of a first run.
    pub fn record_infer(&self, work: u64, cores: usize, infer: Duration) {
        let one = infer.as_nanos() * cores as u128 * u128::from(ONE_RUN) / u128::from(work.max(1));
        smooth(&self.admission.run, Duration::from_nanos(u64::try_from(one).unwrap_or(u64::MAX)));
    }

    /// Records that the model opened a session for a new kind of task in the time `took`, on `cores` cores.
    pub fn record_open(&self, cores: usize, took: Duration) {
        self.metrics.sessions_opened.inc();
        smooth(&self.admission.open, took * cores as u32);
    }
}

impl AdmissionRequest {
    fn pending_work(&self) -> PendingWork {
        PendingWork::new(self.images, self.decode.map(nanos), self.work * self.images as u64, self.opens)
    }
}
