//! The open loop: requests that are due whether or not the server has answered those before.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::LoadError;
use super::arrivals::{Poisson, pace};
use super::client::Connection;
use super::run::Run;

/// Connections, and the requests that wait for one.
#[derive(Default)]
struct Desk {
    /// Each with the part that it is to.
    idle: RefCell<Vec<(Connection, usize)>>,
    /// Those that are busy as well.
    open: Cell<usize>,
    waiting: RefCell<VecDeque<Instant>>,
    next_image: Cell<usize>,
    /// Connections that there were, to share them among the parts.
    opened: Cell<usize>,
}

/// Offers `rate` requests a second from `begin` to the run's end; gives how many were unanswered when the user had enough.
pub(super) async fn offer(run: &Rc<Run>, rate: f64, begin: Instant) -> Result<u64, LoadError> {
    let (sender, mut due) = mpsc::unbounded_channel();
    let (arrivals, end, stop) = (Poisson::new(rate, run.settings.seed), run.end, run.stop.clone());
    let pacing = std::thread::Builder::new().name("pace".to_owned());
    let pacing = pacing.spawn(move || pace(arrivals, begin, end, &sender, &stop)).map_err(LoadError::Thread)?;

    let desk = Rc::new(Desk::default());
    let mut tasks = JoinSet::new();
    while let Some(at) = due.recv().await {
        // Not one by one: most are gone before anybody asks.
        while tasks.try_join_next().is_some() {}
        let connection = desk.idle.borrow_mut().pop();
        if connection.is_none() {
            if desk.open.get() >= run.settings.max_connections {
                run.recorder.borrow_mut().queued(at);
                desk.waiting.borrow_mut().push_back(at);
                continue;
            }
            desk.open.set(desk.open.get() + 1);
        }
        run.recorder.borrow_mut().sent(at, Instant::now());
        let (connection, part) = match connection {
            Some((connection, part)) => (Some(connection), part),
            None => (None, desk.opened.replace(desk.opened.get() + 1) % run.endpoint.parts.len()),
        };
        tasks.spawn_local(serve(Rc::clone(run), Rc::clone(&desk), (connection, part), at));
    }
    let left = run.finish(tasks).await;
    // It has sent its last, or has been told to stop.
    let _ = pacing.join();
    Ok(left)
}

/// Sends a request, and then those that wait for a connection, over one.
async fn serve(run: Rc<Run>, desk: Rc<Desk>, (mut connection, part): (Option<Connection>, usize), mut due: Instant) {
    loop {
        let image = desk.next_image.get();
        desk.next_image.set(image + 1);
        run.exchange(&mut connection, (part, image), due).await;
        match desk.waiting.borrow_mut().pop_front() {
            Some(next) => due = next,
            None => break,
        }
    }
    match connection {
        Some(connection) => desk.idle.borrow_mut().push((connection, part)),
        None => desk.open.set(desk.open.get() - 1),
    }
}
