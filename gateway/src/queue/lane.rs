//! Calls that several who want the same at the same time share. Whoever comes first goes at once; whoever comes while
//! enough calls are under way shares the next one. However a call ends, everybody whose item it took is answered, and the
//! lane goes on.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{runtime::Handle, sync::oneshot};

use super::gathering::{Gathering, Limits};
use crate::connection::RedisError;

/// Makes a lane's calls.
pub(super) trait Calls: Send + Sync + 'static {
    /// What a call takes several of.
    type Item: Send + Sync + 'static;
    /// What comes back for each.
    type Answer: Send + 'static;

    /// As in errors and logs.
    fn name(&self) -> &'static str;

    /// An answer for each item, in order.
    fn call(
        &self,
        items: &[&Self::Item],
    ) -> impl Future<Output = Result<Vec<Self::Answer>, RedisError>> + Send;
}

/// What comes of an item.
pub(super) type Outcome<C> = Result<<C as Calls>::Answer, RedisError>;

/// See the module.
pub(super) struct Lane<C: Calls>(Arc<Inner<C>>);

struct Inner<C: Calls> {
    calls: C,
    gathering: Mutex<Gathering<Asked<C>>>,
}

struct Asked<C: Calls> {
    item: C::Item,
    answer: oneshot::Sender<Outcome<C>>,
}

/// One of the callers that a lane may have at once, and what it has in hand. Its place is given back with it.
struct Caller<C: Calls> {
    lane: Arc<Inner<C>>,
    in_hand: VecDeque<Asked<C>>,
    /// False when nothing waited any more, and the place is given back already.
    at_work: bool,
}

// === impl Lane ===

impl<C: Calls> Lane<C> {
    pub(super) fn new(calls: C, limits: Limits) -> Self {
        Self(Arc::new(Inner {
            calls,
            gathering: Mutex::new(Gathering::new(limits)),
        }))
    }

    /// An item of so many bytes, for the next call. Whoever drops the receiver takes nothing from the others: what was not
    /// sent then is not sent any more.
    pub(super) fn ask(&self, item: C::Item, bytes: usize) -> oneshot::Receiver<Outcome<C>> {
        let (answer, answered) = oneshot::channel();
        if self.0.lock().push(Asked { item, answer }, bytes) {
            // By itself: whoever came first may leave.
            tokio::spawn(Caller::new(&self.0).run());
        }
        answered
    }
}

// === impl Inner ===

impl<C: Calls> Inner<C> {
    fn lock(&self) -> MutexGuard<'_, Gathering<Asked<C>>> {
        self.gathering.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Caller ===

impl<C: Calls> Caller<C> {
    fn new(lane: &Arc<Inner<C>>) -> Self {
        Self {
            lane: Arc::clone(lane),
            in_hand: VecDeque::new(),
            at_work: true,
        }
    }

    async fn run(mut self) {
        loop {
            // Those who are ready now get in too.
            tokio::task::yield_now().await;
            let next = self.lane.lock().next(|asked| !asked.answer.is_closed());
            let Some(asked) = next else {
                self.at_work = false;
                return;
            };
            self.in_hand = asked.into();
            self.call().await;
        }
    }

    /// Answers everybody in hand.
    async fn call(&mut self) {
        let items: Vec<&C::Item> = self.in_hand.iter().map(|asked| &asked.item).collect();
        match self.lane.calls.call(&items).await {
            Ok(answers) => {
                for (asked, answer) in self.in_hand.drain(..).zip(answers) {
                    // Whoever left needs no answer.
                    let _ = asked.answer.send(Ok(answer));
                }
            }
            // One item's fault is not the others': scripts can be repeated.
            Err(RedisError::Refused(_)) if items.len() > 1 => {
                while let Some(first) = self.in_hand.front() {
                    let alone = self.lane.calls.call(&[&first.item]).await;
                    let answer = alone.and_then(|answers| {
                        let nothing =
                            || RedisError::Refused(format!("{}: no answer", self.lane.calls.name()));
                        answers.into_iter().next().ok_or_else(nothing)
                    });
                    if let Some(asked) = self.in_hand.pop_front() {
                        let _ = asked.answer.send(answer);
                    }
                }
            }
            Err(error) => self.refuse(&error),
        }
    }

    fn refuse(&mut self, error: &RedisError) {
        for asked in self.in_hand.drain(..) {
            let _ = asked.answer.send(Err(error.clone()));
        }
    }
}

impl<C: Calls> Drop for Caller<C> {
    fn drop(&mut self) {
        if !self.at_work {
            return;
        }
        let panicked = std::thread::panicking();
        let name = self.lane.calls.name();
        if panicked {
            tracing::error!(
                script = name,
                items = self.in_hand.len(),
                "a shared call panicked"
            );
        }
        // Whether the call took effect is unknown, as when Redis does not answer.
        self.refuse(&RedisError::Unavailable(if panicked {
            format!("the call of script {name} ended with a fault of the gateway's (a panic)")
        } else {
            "the gateway is stopping".to_owned()
        }));
        // Others may wait already, and nobody would begin for them. At the end of the runtime there is nobody to begin.
        if self.lane.lock().leave()
            && panicked
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(Self::new(&self.lane).run());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    const LIMITS: Limits = Limits {
        items: 3,
        bytes: 1000,
        calls: 1,
    };

    /// Doubles numbers, of which some make it fail.
    #[derive(Clone, Default)]
    struct Doubling(Arc<State>);

    struct State {
        /// A call ends when it gets one.
        go: Semaphore,
        calls: AtomicUsize,
    }

    impl Default for State {
        fn default() -> Self {
            Self {
                go: Semaphore::new(0),
                calls: AtomicUsize::new(0),
            }
        }
    }

    const REFUSED: u32 = 13;
    const PANICS: u32 = 666;

    impl Calls for Doubling {
        type Item = u32;
        type Answer = u32;

        fn name(&self) -> &'static str {
            "doubling"
        }

        async fn call(&self, items: &[&u32]) -> Result<Vec<u32>, RedisError> {
            self.0.calls.fetch_add(1, Ordering::SeqCst);
            self.0.go.acquire().await.unwrap().forget();
            assert!(!items.contains(&&PANICS), "as a fault would");
            if items.contains(&&REFUSED) {
                return Err(RedisError::Refused("an unlucky number".to_owned()));
            }
            Ok(items.iter().map(|item| **item * 2).collect())
        }
    }

    fn lane(calls_at_once: usize) -> (Lane<Doubling>, Arc<State>) {
        let doubling = Doubling::default();
        let state = Arc::clone(&doubling.0);
        let limits = Limits {
            calls: calls_at_once,
            ..LIMITS
        };
        (Lane::new(doubling, limits), state)
    }

    type Answered = oneshot::Receiver<Result<u32, RedisError>>;

    fn ask(lane: &Lane<Doubling>, items: &[u32]) -> Vec<Answered> {
        items.iter().map(|item| lane.ask(*item, 1)).collect()
    }

    /// What came of each: its number, or the error's words.
    async fn outcomes(answered: Vec<Answered>) -> Vec<Result<u32, String>> {
        let mut outcomes = Vec::new();
        for answer in answered {
            outcomes.push(answer.await.unwrap().map_err(|error| error.to_string()));
        }
        outcomes
    }

    #[tokio::test]
    async fn those_who_come_together_share_a_call_and_one_items_fault_is_its_own() {
        let (lane, state) = lane(1);
        state.go.add_permits(100);
        let outcomes = outcomes(ask(&lane, &[1, REFUSED, 3, 4])).await;
        assert_eq!(outcomes[0], Ok(2));
        assert!(outcomes[1].as_ref().unwrap_err().contains("unlucky"));
        assert_eq!(outcomes[2..], [Ok(6), Ok(8)]);
        // Three together, those three alone, and the fourth.
        assert_eq!(state.calls.load(Ordering::SeqCst), 5);
    }

    #[tokio::test]
    async fn a_call_that_panics_is_told_to_those_who_shared_it_and_the_lane_goes_on() {
        for at_once in [1, 2] {
            let (lane, state) = lane(at_once);
            let shared = ask(&lane, &[1, PANICS, 3]);
            // These come while it is under way, in the call after it, and nobody comes behind them.
            while state.calls.load(Ordering::SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
            let behind = ask(&lane, &[4, 5]);
            state.go.add_permits(100);
            for outcome in outcomes(shared).await {
                let told = outcome.unwrap_err();
                assert!(told.contains("doubling") && told.contains("panic"), "{told}");
            }
            assert_eq!(outcomes(behind).await, [Ok(8), Ok(10)], "{at_once} at once");
            // As many panics as there are places, and more.
            for _ in 0..3 {
                assert!(outcomes(ask(&lane, &[PANICS])).await[0].is_err());
            }
            assert_eq!(outcomes(ask(&lane, &[6])).await, [Ok(12)]);
        }
    }

    #[tokio::test]
    async fn what_nobody_waits_for_any_more_is_not_sent() {
        let (lane, state) = lane(1);
        drop(ask(&lane, &[PANICS]));
        state.go.add_permits(100);
        assert_eq!(outcomes(ask(&lane, &[2])).await, [Ok(4)]);
        assert_eq!(state.calls.load(Ordering::SeqCst), 1);
    }
}
