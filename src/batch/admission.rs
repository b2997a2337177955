//! Admission: who may have images in flight, decided before anything is spent on them.
//!
//! Three questions, in this order: is there a place; would the wait be longer than anybody is made to wait; would it
//! outlast the request's own deadline. The wait is predicted from the images in flight and the core time that an image
//! has taken of late, decoding and model together; what is more work for the model than an image of its own size counts
//! for more.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{AdmitError, Queue, Task};
use crate::cores::Priority;
use crate::fair_share::Client;
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
    /// Time that decoding all of them is expected to take; by what images have taken of late if that is not known.
    pub decode: Option<Duration>,
    /// The model's work on each, in hundredths of that on an image of its own size.
    pub work: u64,
    /// Whether the model has to get ready for them first.
    pub opens: bool,
    /// Whether somebody waits for it.
    pub priority: Priority,
    /// Who has asked for it.
    pub client: Client,
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
    /// Those of them of which it is not known what decoding takes.
    unknown: usize,
    /// Nanoseconds that decoding the others takes.
    decode: u64,
    work: u64,
    /// Times that the model has to get ready.
    opens: u64,
}

impl Load {
    fn new(images: usize, decode: Option<u64>, work: u64, opens: bool) -> Self {
        let unknown = if decode.is_some() { 0 } else { images };
        Self { images, unknown, decode: decode.unwrap_or(0), work, opens: opens.into() }
    }

    fn add(&mut self, other: Self) {
        self.images += other.images;
        self.unknown += other.unknown;
        self.decode += other.decode;
        self.work += other.work;
        self.opens += other.opens;
    }

    fn take_away(&mut self, other: Self) {
        self.images -= other.images;
        self.unknown -= other.unknown;
        self.decode -= other.decode;
        self.work -= other.work;
        self.opens -= other.opens;
    }

    fn is_nothing(&self) -> bool {
        self.images == 0 && self.work == 0 && self.decode == 0
    }

    fn sum(loads: &[Self]) -> Self {
        let mut sum = Self::default();
        loads.iter().for_each(|load| sum.add(*load));
        sum
    }
}

/// What is in flight, by priority; of each, also by client.
#[derive(Debug, Default)]
pub(super) struct InFlight([Load; 2], [HashMap<Client, Load>; 2]);

impl InFlight {
    fn all(&self) -> Load {
        Load::sum(&self.0)
    }

    fn add(&mut self, priority: Priority, client: Client, load: Load) {
        self.0[priority as usize].add(load);
        self.1[priority as usize].entry(client).or_default().add(load);
    }

    fn take_away(&mut self, priority: Priority, client: Client, load: Load) {
        self.0[priority as usize].take_away(load);
        let clients = &mut self.1[priority as usize];
        if let Some(of_client) = clients.get_mut(&client) {
            of_client.take_away(load);
            if of_client.is_nothing() {
                clients.remove(&client);
            }
        }
    }

    /// Core time before new work of a client is done, when clients have equal shares of the cores: its own work, and as much of that of
    /// each other client.
    fn ahead_of_client(&self, demand: &Demand, admission: &Admission) -> u64 {
        let ranks = &self.1[..=demand.priority as usize];
        let loads = || ranks.iter().flatten();
        let own = loads().filter(|(client, _)| **client == demand.client).map(|(_, load)| admission.cost(*load)).sum();
        let new = admission.cost(demand.load());
        let share = u64::saturating_add(own, new);
        let others = loads().filter(|(client, _)| **client != demand.client);
        others.fold(own, |sum, (_, load)| sum.saturating_add(admission.cost(*load).min(share)))
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
        let unknown = self.prepare.load(Ordering::Relaxed).saturating_mul(load.unknown as u64);
        let prepare = unknown.saturating_add(load.decode);
        let infer = self.infer.load(Ordering::Relaxed).saturating_mul(load.work) / ONE_RUN;
        let open = self.open.load(Ordering::Relaxed).saturating_mul(load.opens);
        prepare.saturating_add(infer).saturating_add(open)
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
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
    client: Client,
    images: usize,
    /// Nanoseconds of decoding of all images, if that is known.
    decode: Option<u64>,
    /// Of each image.
    work: u64,
    opens: bool,
    /// Not counted at the moment: the images wait where they keep nobody from a core.
    aside: bool,
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
    /// Takes the right for one image, whose decoding takes so long, out of this one; `None` when there is none left.
    pub fn split_one(&mut self, decode: Duration) -> Option<Self> {
        self.images = self.images.checked_sub(1)?;
        let (places, gauge) = (Arc::clone(&self.places), self.gauge.split_one());
        // The first one gets the model ready for the others.
        let opens = std::mem::take(&mut self.opens);
        let decode = self.decode.as_mut().map(|all| {
            let one = nanos(decode).min(*all);
            *all -= one;
            one
        });
        let Self { priority, client, work, stage, .. } = *self;
        Some(Self { places, priority, client, images: 1, decode, work, opens, aside: false, gauge, stage })
    }

    /// Has the images not count while they wait for something else than the cores and the model.
    pub fn set_aside(&mut self, aside: bool) {
        if aside != self.aside {
            let places = Arc::clone(&self.places);
            let mut in_flight = places.lock();
            if aside {
                in_flight.take_away(self.priority, self.client, self.load());
                self.aside = true;
            } else {
                self.aside = false;
                in_flight.add(self.priority, self.client, self.load());
            }
        }
    }

    /// The model's work on its images, as [`Demand`] counts it.
    pub(super) fn work(&self) -> u64 {
        self.work * self.images as u64
    }

    /// What it counts for.
    fn load(&self) -> Load {
        if self.aside {
            return Load::default();
        }
        Load::new(self.images, self.decode, self.work(), self.opens)
    }

    /// Who has asked for it.
    pub(super) fn client(&self) -> Client {
        self.client
    }

    /// Whether somebody waits for it.
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
        in_flight.take_away(self.priority, self.client, self.load());
        // The gauge falls with the field.
    }
}

impl<T: Task> Queue<T> {
    /// Asks for room, before anything is spent on the images. All or none.
    ///
    /// # Errors
    /// A bound is reached, the deadline cannot be met, or the queue is closed.
    pub fn admit(&self, demand: Demand) -> Result<Permit, AdmitError> {
        let Demand { images, decode, work, opens, priority, client, .. } = demand;
        let mut in_flight = self.places.lock();
        self.check(&in_flight, demand)?;
        in_flight.add(priority, client, demand.load());
        drop(in_flight);
        let (places, gauge) = (Arc::clone(&self.places), GaugeGuard::by(&self.metrics.in_flight, images as i64));
        let (decode, stage) = (decode.map(nanos), Some(Stage::Decode));
        Ok(Permit { places, priority, client, images, decode, work, opens, aside: false, gauge, stage })
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
        // Clients take turns for the cores: nobody is refused for what others have asked for before.
        let all = self.wait_behind(in_flight.ahead_of(demand.priority));
        let wait = all.min(self.on_all_cores(in_flight.ahead_of_client(&demand, &self.admission)));
        if demand.priority == Priority::Interactive && wait > bounds.max_wait {
            return Err(AdmitError::WaitTooLong(wait));
        }
        // Its own time counts too, at the least one image's.
        let decode = demand.decode.map(|all| nanos(all) / demand.images.max(1) as u64);
        let first = Load::new(1, decode, demand.work, demand.opens);
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

    /// Whether no images are in flight.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.metrics.in_flight.get() == 0
    }

    fn wait_behind(&self, load: Load) -> Duration {
        self.on_all_cores(self.admission.cost(load))
    }

    /// How long core time takes.
    fn on_all_cores(&self, nanos: u64) -> Duration {
        Duration::from_nanos(nanos / self.cores.total().max(1) as u64)
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
        Load::new(self.images, self.decode.map(nanos), self.work * self.images as u64, self.opens)
    }
}
