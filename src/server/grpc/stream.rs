//! `ClassifyStream`: any number of requests, at the speed of the server.
//!
//! A stream has a window of requests that are in progress. The client keeps the requests after it, because of
//! HTTP/2's flow control. While the server is full, the requests in the window wait: a job over a collection uses the
//! capacity that other requests leave, and is not shed. When a client disconnects, the requests in its window are
//! dropped.

use std::pin::Pin;

use futures::Stream;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Duration, Instant, timeout_at};
use tonic::{Status, Streaming};

use super::Grpc;
use super::call::Call;
use super::messages::problem_error;
use crate::server::problem::Problem;
use crate::server::shutdown::Phase;
use crate::service::{ClassifyPlan, Code, Error};
use ghostserve_proto::v1;
use ghostserve_proto::v1::classify_stream_response::Outcome;

/// The longest time between two checks whether there is capacity. The predicted wait also shrinks without a
/// notification, because the costs of images that it is predicted from change.
const CAPACITY_CHECK_INTERVAL: Duration = Duration::from_millis(100);

type RequestInProgress = Pin<Box<dyn Future<Output = v1::ClassifyStreamResponse> + Send>>;

/// The state of a stream.
struct StreamState {
    grpc: Grpc,
    call: Call,
    messages: Streaming<v1::ClassifyStreamRequest>,
    window: FuturesUnordered<RequestInProgress>,
    /// How the stream ends, once no more messages are read.
    end: Option<Result<(), Status>>,
}

impl Grpc {
    pub(super) fn classify_all(
        self,
        call: Call,
        messages: Streaming<v1::ClassifyStreamRequest>,
    ) -> Pin<Box<dyn Stream<Item = Result<v1::ClassifyStreamResponse, Status>> + Send>> {
        let state = StreamState { grpc: self, call, messages, window: FuturesUnordered::new(), end: None };
        Box::pin(futures::stream::unfold(Some(state), async |state| {
            let mut state = state?;
            match state.next().await {
                Some(Ok(answer)) => Some((Ok(answer), Some(state))),
                Some(Err(status)) => Some((Err(status), None)),
                None => None,
            }
        }))
    }

    /// Maximum number of requests in progress: two batches for every worker of the model that has the most. One of
    /// them runs while the other one is decoded.
    fn window_size(&self) -> usize {
        let batches = self.app.service.models().map(|model| 2 * model.plan.workers * model.plan.max_batch);
        batches.max().unwrap_or(1).max(4)
    }

    /// Answers one message, which takes `size` bytes of the call's memory.
    async fn answer(self, call: Call, message: v1::ClassifyStreamRequest, size: usize) -> v1::ClassifyStreamResponse {
        let (came, id) = (Instant::now(), message.id);
        let outcome = self.classify_patiently(&call, came, message.request.unwrap_or_default()).await;
        call.meter.release(size);
        let outcome = match outcome {
            Ok(response) => Outcome::Response(response),
            Err(error) => {
                let metrics = &self.app.metrics;
                metrics.problems_total.with_label_values(&[error.code.as_str()]).inc();
                Outcome::Error(problem_error(&error))
            }
        };
        v1::ClassifyStreamResponse { id, outcome: Some(outcome) }
    }

    /// Classifies the images of a request that came at a certain time, as soon as there is capacity.
    async fn classify_patiently(
        &self,
        call: &Call,
        came: Instant,
        request: v1::ClassifyRequest,
    ) -> Result<v1::ClassifyResponse, Problem> {
        let plan = self.plan_classify(call, came, &request)?;
        let images = request.images.len().max(1);
        loop {
            self.wait_for_capacity(&plan, images).await?;
            // Copies of a request share its images.
            match self.classify_planned(plan.clone(), came, request.clone()).await {
                // Another request took the capacity first.
                Err(problem) if problem.code == Code::Overloaded && self.app.service.is_full(&plan, images) => {}
                answer => return answer,
            }
        }
    }

    /// Waits until so many images would not be shed.
    async fn wait_for_capacity(&self, plan: &ClassifyPlan, images: usize) -> Result<(), Error> {
        let deadline = plan.context.deadline;
        loop {
            // Created before the check, so that no notification in between is missed.
            let freed = plan.model.queue.capacity_freed();
            if !self.app.service.is_full(plan, images) {
                return Ok(());
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(Error::DeadlineExceeded);
            }
            // Whether it was a notification or not, the next check decides.
            let _ = timeout_at(deadline.min(now + CAPACITY_CHECK_INTERVAL), freed).await;
        }
    }
}

impl StreamState {
    /// The next answer, or the end.
    async fn next(&mut self) -> Option<Result<v1::ClassifyStreamResponse, Status>> {
        let window_size = self.grpc.window_size();
        let lifecycle = self.grpc.app.lifecycle.clone();
        let deadline = self.call.client_deadline();
        loop {
            if self.window.is_empty()
                && let Some(end) = self.end.take()
            {
                return end.err().map(Err);
            }
            let read = self.end.is_none() && self.window.len() < window_size;
            tokio::select! {
                biased;
                Some(answer) = self.window.next() => return Some(Ok(answer)),
                () = reached(deadline) => return Some(Err(self.call.errors.status(&Error::DeadlineExceeded.into()))),
                () = lifecycle.reached(Phase::Stopping), if self.end.is_none() => {
                    self.end = Some(Err(self.call.errors.status(&Error::Draining.into())));
                }
                message = self.messages.message(), if read => match message {
                    Ok(Some(message)) => {
                        let size = self.call.meter.next_message_bytes();
                        let answer = self.grpc.clone().answer(self.call.clone(), message, size);
                        self.window.push(Box::pin(answer));
                    }
                    Ok(None) => self.end = Some(Ok(())),
                    // The requests in progress are still answered.
                    Err(status) => self.end = Some(Err(status)),
                },
                else => {
                    let problem = Problem::new(Code::Internal, "the stream has nothing to wait for");
                    return Some(Err(self.call.errors.status(&problem)));
                }
            }
        }
    }
}

/// Waits for a deadline, if there is one.
async fn reached(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
