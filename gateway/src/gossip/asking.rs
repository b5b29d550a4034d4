//! How a step of discovery goes that asks endpoints to become neighbors. An attempt begins when somebody
//! is asked, and ends when one of those who were is a neighbor, or when none is for as long as a step may
//! take. Who is asked meanwhile is part of the same attempt. Who was asked in vain and comes later ends
//! whatever is under way then.

use std::{
    collections::BTreeSet,
    future::{Future, pending},
    pin::pin,
    time::{Duration, Instant},
};

use iroh::EndpointId;
use tokio::time::sleep_until;

use super::{ladder::Step, state::TopicState};

/// Who one attempt asks at most; a step asks a few at a time, and its time is short.
const ASKED: usize = 256;

/// The attempts of one step in one topic.
pub struct Asking {
    step: Step,
    limit: Duration,
    under_way: Option<Attempt>,
    has_told: bool,
}

struct Attempt {
    began: Instant,
    /// Whom the step chose from, in a few words.
    chosen_from: String,
    asked: BTreeSet<EndpointId>,
    /// Asked in vain before. Dialing them may go on.
    earlier: BTreeSet<EndpointId>,
    /// It has failed; nobody was asked since.
    given_up: bool,
}

impl Attempt {
    /// How many of those it asked are neighbors.
    fn came(&self, neighbors: &[EndpointId]) -> usize {
        let is_asked =
            |peer: &&EndpointId| self.asked.contains(*peer) || self.earlier.contains(*peer);
        neighbors.iter().filter(is_asked).count()
    }
}

impl Asking {
    /// `limit` is how long one attempt may take (`discovery.timeout_ms`).
    pub const fn new(step: Step, limit: Duration) -> Self {
        Self { step, limit, under_way: None, has_told: false }
    }

    /// Takes note of whom the step asks now, and whom it chose from. A look that finds nobody to ask is over
    /// at once, and worth a word while we are alone, or when it is the first: once all are neighbors, how
    /// they became so stands.
    pub fn ask(&mut self, state: &TopicState, chosen_from: &str, asked: &[EndpointId]) {
        let began = Instant::now();
        if let Some(attempt) = self.under_way.as_mut().filter(|attempt| !attempt.given_up) {
            chosen_from.clone_into(&mut attempt.chosen_from);
            let room = ASKED.saturating_sub(attempt.asked.len());
            attempt.asked.extend(asked.iter().take(room));
        } else if asked.is_empty() {
            if !self.has_told || state.neighbors().is_empty() {
                self.tell(state, began, Ok(format!("{chosen_from}asked nobody")));
            }
        } else {
            let mut earlier = BTreeSet::new();
            if let Some(before) = self.under_way.take() {
                earlier.extend(before.asked.into_iter().chain(before.earlier).take(ASKED));
            }
            let asked = asked.iter().copied().take(ASKED).collect();
            let chosen_from = chosen_from.to_owned();
            self.under_way = Some(Attempt { began, chosen_from, asked, earlier, given_up: false });
        }
    }

    /// Lets a pause pass, and writes down how the attempt ends that is under way, if it does meanwhile.
    pub async fn during(&mut self, state: &TopicState, pause: impl Future<Output = ()>) {
        let mut pause = pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => return,
                () = self.ends(state) => {}
            }
        }
    }

    /// Waits for the end of the attempt under way, or for whoever comes late, and writes it down; for ever
    /// when nobody was asked. Cancel safe.
    pub async fn ends(&mut self, state: &TopicState) {
        let Some(attempt) = &mut self.under_way else { return pending().await };
        let mut count = state.count();
        let mut over = pin!(sleep_until((attempt.began + self.limit).into()));
        let mut is_over = false;
        let came = loop {
            let came = attempt.came(&state.neighbors());
            if came > 0 || is_over {
                break came;
            }
            tokio::select! {
                () = &mut over, if !attempt.given_up => is_over = true,
                changed = count.changed() => if changed.is_err() { pending().await },
            }
        };
        let (began, asked) = (attempt.began, attempt.asked.len());
        let text = format!("{}asked {asked}", attempt.chosen_from);
        let result = match (came, attempt.given_up) {
            (0, _) => {
                Err(format!("{text}, none of them came within {} ms", self.limit.as_millis()))
            }
            (came, false) => Ok(format!("{text}, {came} came")),
            (came, true) => Ok(format!("{text}, {came} came late")),
        };
        match result {
            Err(_) => attempt.given_up = true,
            Ok(_) => self.under_way = None,
        }
        self.tell(state, began, result);
    }

    fn tell(&mut self, state: &TopicState, began: Instant, result: Result<String, String>) {
        self.has_told = true;
        state.step(self.step, began, result);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt;
    use iroh::SecretKey;

    use super::*;
    use crate::{
        gossip::ladder::StepResult, metrics::Metrics, pipeline::HowJoined, protocol::TopicName,
    };

    const LIMIT: Duration = Duration::from_millis(80);

    fn state() -> TopicState {
        TopicState::new(TopicName::new("t").unwrap(), Arc::<Metrics>::default())
    }

    fn told(state: &TopicState) -> Option<StepResult> {
        state.status(HowJoined::Command, 7).steps.get(&Step::Configured).cloned()
    }

    fn peers() -> [EndpointId; 3] {
        [1, 2, 3].map(|seed| SecretKey::from_bytes(&[seed; 32]).public())
    }

    #[tokio::test]
    async fn an_attempt_takes_until_one_of_those_asked_is_there() {
        let (state, [a, b, stranger]) = (state(), peers());
        let mut asking = Asking::new(Step::Configured, Duration::from_secs(60));
        asking.ask(&state, "", &[a]);
        assert!(told(&state).is_none(), "asking is no success");
        let comes = async {
            tokio::time::sleep(Duration::from_millis(30)).await;
            state.up(stranger);
            tokio::time::sleep(Duration::from_millis(30)).await;
            state.up(b);
        };
        // Those asked later count as well.
        asking.ask(&state, "", &[b]);
        tokio::join!(comes, asking.ends(&state));
        let result = told(&state).unwrap();
        assert!(result.ok && (60..60_000).contains(&result.took_ms), "{result:?}");
        assert_eq!((result.attempts, result.result.as_str()), (1, "asked 2, 1 came"));
        assert!(asking.ends(&state).now_or_never().is_none(), "nothing is under way");
        asking.ask(&state, "", &[]);
        assert_eq!(told(&state).unwrap().attempts, 1, "all are neighbors");
    }

    #[tokio::test]
    async fn an_attempt_in_vain_has_failed_when_its_time_is_over() {
        let (state, [a, _, stranger]) = (state(), peers());
        let mut asking = Asking::new(Step::Configured, LIMIT);
        state.up(stranger);
        asking.ask(&state, "sees 1, ", &[a]);
        // Interrupted, it goes on where it was.
        asking.during(&state, tokio::time::sleep(LIMIT / 4)).await;
        assert!(told(&state).is_none());
        asking.during(&state, tokio::time::sleep(LIMIT * 2)).await;
        let result = told(&state).unwrap();
        assert!(!result.ok && result.took_ms >= LIMIT.as_millis() as u64, "{result:?}");
        let text = "sees 1, asked 1, none of them came within 80 ms";
        assert_eq!((result.result.as_str(), result.error.as_deref()), (text, Some(text)));
        assert_eq!((result.attempts, result.failures), (1, 1));
        state.down(stranger);
        asking.ask(&state, "sees 0, ", &[]);
        let result = told(&state).unwrap();
        assert!(result.ok && result.result == "sees 0, asked nobody", "{result:?}");
    }

    #[tokio::test]
    async fn who_comes_after_the_time_was_over_came_all_the_same() {
        for asks_another in [false, true] {
            let (state, [a, b, _]) = (state(), peers());
            let mut asking = Asking::new(Step::Configured, LIMIT);
            asking.ask(&state, "", &[a]);
            asking.ends(&state).await;
            assert!(!told(&state).unwrap().ok);
            assert!(asking.ends(&state).now_or_never().is_none(), "it has failed once");
            if asks_another {
                asking.ask(&state, "", &[b]);
            }
            state.up(a);
            asking.ends(&state).await;
            let result = told(&state).unwrap();
            assert!(result.ok && (result.attempts, result.failures) == (2, 1), "{result:?}");
            let text = if asks_another { "asked 1, 1 came" } else { "asked 1, 1 came late" };
            assert_eq!(result.result, text);
            assert!(asking.ends(&state).now_or_never().is_none());
        }
    }
}
