//! `ClassifyStream`: as many requests as a client sends, at the server's pace.
//!
//! A stream has a window of requests that are being worked on. What comes behind it stays with the client, by HTTP/2's flow
//! control, and so does everything while the server is full: a job over a collection fills the gaps that others leave, and is not
//! shed. A client that leaves takes everything in the window along.

use std::pin::Pin;

use futures::Stream;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Duration, Instant, sleep};
use tonic::{Status, Streaming};

use super::Grpc;
use super::call::Call;
use super::messages::{name, priority, problem};
use crate::preprocess::Origin;
use crate::server::problem::Problem;
use crate::server::shutdown::Phase;
use crate::service::{Code, Error};
use ghostserve_proto::v1;
use ghostserve_proto::v1::classify_stream_response::Outcome;

/// While there is no room, it is looked for this often.
const LOOK: Duration = Duration::from_millis(2);

type Working = Pin<Box<dyn Future<Output = v1::ClassifyStreamResponse> + Send>>;

struct Stage {
    grpc: Grpc,
    call: Call,
    messages: Streaming<v1::ClassifyStreamRequest>,
    working: FuturesUnordered<Working>,
    /// How the stream is going to end, once nothing more is read.
    end: Option<Result<(), Status>>,
}

impl Grpc {
    pub(super) fn classify_all(
        self,
        call: Call,
        messages: Streaming<v1::ClassifyStreamRequest>,
    ) -> Pin<Box<dyn Stream<Item = Result<v1::ClassifyStreamResponse, Status>> + Send>> {
        let stage = Stage { grpc: self, call, messages, working: FuturesUnordered::new(), end: None };
        Box::pin(futures::stream::unfold(Some(stage), async |stage| {
            let mut stage = stage?;
            match stage.next().await {
                Some(Ok(answer)) => Some((Ok(answer), Some(stage))),
                Some(Err(status)) => Some((Err(status), None)),
                None => None,
            }
        }))
    }

    /// Two batches for every worker of the model that has the most: one that runs, one that is got ready.
    fn window(&self) -> usize {
        let batches = self.app.service.models().map(|model| 2 * model.plan.workers * model.plan.max_batch);
        batches.max().unwrap_or(1).max(4)
    }

    async fn answer(
        self,
        call: Call,
        (message, size): (v1::ClassifyStreamRequest, usize),
    ) -> v1::ClassifyStreamResponse {
        let (came, id) = (Instant::now(), message.id);
        let request = message.request.unwrap_or_default();
        let outcome = match self.wait_for_room(&call, came, &request).await {
            Ok(()) => self.classify_one(&call, came, request).await,
            Err(error) => Err(error.into()),
        };
        call.meter.done_with(size);
        let outcome = match outcome {
            Ok(response) => Outcome::Response(response),
            Err(found) => {
                let metrics = &self.app.metrics;
                metrics.problems_total.with_label_values(&[found.code.as_str()]).inc();
                Outcome::Error(problem(&found))
            }
        };
        v1::ClassifyStreamResponse { id, outcome: Some(outcome) }
    }

    async fn wait_for_room(&self, call: &Call, came: Instant, request: &v1::ClassifyRequest) -> Result<(), Error> {
        let service = &self.app.service;
        let model = name(request.model.clone());
        let model = service.model(model.as_deref())?;
        let origin = Origin { priority: priority(request.priority(), call.priority), ..call.origin(came) };
        while service.is_full(model, request.images.len().max(1), origin) {
            if Instant::now() + LOOK > origin.deadline {
                return Err(Error::DeadlineExceeded);
            }
            sleep(LOOK).await;
        }
        Ok(())
    }
}

impl Stage {
    /// The next answer, or the end.
    async fn next(&mut self) -> Option<Result<v1::ClassifyStreamResponse, Status>> {
        let window = self.grpc.window();
        let lifecycle = self.grpc.app.lifecycle.clone();
        let late = self.call.asked();
        loop {
            if self.working.is_empty()
                && let Some(end) = self.end.take()
            {
                return end.err().map(Err);
            }
            let read = self.end.is_none() && self.working.len() < window;
            tokio::select! {
                biased;
                Some(answer) = self.working.next() => return Some(Ok(answer)),
                () = until(late) => return Some(Err(self.call.refusal.status(&Error::DeadlineExceeded.into()))),
                () = lifecycle.reached(Phase::Stopping), if self.end.is_none() => {
                    self.end = Some(Err(self.call.refusal.status(&Error::Draining.into())));
                }
                message = self.messages.message(), if read => match message {
                    Ok(Some(message)) => {
                        let size = self.call.meter.next_message();
                        let work = self.grpc.clone().answer(self.call.clone(), (message, size));
                        self.working.push(Box::pin(work));
                    }
                    Ok(None) => self.end = Some(Ok(())),
                    // What is being worked on is still answered.
                    Err(status) => self.end = Some(Err(status)),
                },
                else => {
                    let problem = Problem::new(Code::Internal, "the stream has nothing to wait for");
                    return Some(Err(self.call.refusal.status(&problem)));
                }
            }
        }
    }
}

async fn until(late: Option<Instant>) {
    match late {
        Some(late) => tokio::time::sleep_until(late).await,
        None => std::future::pending().await,
    }
}
