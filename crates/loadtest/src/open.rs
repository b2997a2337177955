//! The open loop: requests are sent when they are due, whether or not the server has answered the earlier ones.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::LoadTestError;
use super::arrivals::{PoissonArrivals, pace};
use super::client::Connection;
use super::run::RunContext;

/// The connections of an open loop, and the requests that wait for one.
#[derive(Default)]
struct ConnectionPool {
    /// Idle connections, each with the index of its destination.
    idle: RefCell<Vec<(Connection, usize)>>,
    /// Number of open connections, idle and busy.
    open: Cell<usize>,
    /// Due times of the requests that wait for a connection.
    waiting: RefCell<VecDeque<Instant>>,
    /// Index of the image that the next request carries.
    next_image: Cell<usize>,
    /// Number of connections opened so far; distributes them over the destinations in turn.
    opened: Cell<usize>,
}

/// Offers `rate` requests per second from `begin` to the run's end. Returns the number of requests without a response
/// when the run was stopped early, otherwise 0.
pub(super) async fn run_open_loop(run: &Rc<RunContext>, rate: f64, begin: Instant) -> Result<u64, LoadTestError> {
    let (sender, mut due_times) = mpsc::unbounded_channel();
    let (arrivals, end, stop) = (PoissonArrivals::new(rate, run.settings.seed), run.end, run.stop.clone());
    let pacing_thread = std::thread::Builder::new()
        .name("pace".to_owned())
        .spawn(move || pace(arrivals, begin, end, &sender, &stop))
        .map_err(LoadTestError::Thread)?;

    let pool = Rc::new(ConnectionPool::default());
    let mut tasks = JoinSet::new();
    while let Some(due) = due_times.recv().await {
        // Most tasks have ended since the last arrival: take all of their results.
        while tasks.try_join_next().is_some() {}
        let idle = pool.idle.borrow_mut().pop();
        if idle.is_none() {
            if pool.open.get() >= run.settings.max_connections {
                run.recorder.borrow_mut().record_queued(due);
                pool.waiting.borrow_mut().push_back(due);
                continue;
            }
            pool.open.set(pool.open.get() + 1);
        }
        run.recorder.borrow_mut().record_lag(due, Instant::now());
        let (connection, destination) = match idle {
            Some((connection, destination)) => (Some(connection), destination),
            None => (None, pool.opened.replace(pool.opened.get() + 1) % run.endpoint.destinations.len()),
        };
        tasks.spawn_local(send_requests(Rc::clone(run), Rc::clone(&pool), connection, destination, due));
    }
    let unanswered = run.finish(tasks).await;
    // The channel is closed, so the thread has sent its last arrival or was stopped.
    let _ = pacing_thread.join();
    Ok(unanswered)
}

/// Sends the request that is due at `due`, then those that wait for a connection. Returns the connection to the pool.
async fn send_requests(
    run: Rc<RunContext>,
    pool: Rc<ConnectionPool>,
    mut connection: Option<Connection>,
    destination: usize,
    mut due: Instant,
) {
    loop {
        let image = pool.next_image.get();
        pool.next_image.set(image + 1);
        run.exchange(&mut connection, destination, image, due).await;
        match pool.waiting.borrow_mut().pop_front() {
            Some(next) => due = next,
            None => break,
        }
    }
    match connection {
        Some(connection) => pool.idle.borrow_mut().push((connection, destination)),
        None => pool.open.set(pool.open.get() - 1),
    }
}
