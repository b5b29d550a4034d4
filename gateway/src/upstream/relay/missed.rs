//! Fetches what was missed, part by part, and again after a failure or a gap.

use std::{collections::HashSet, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::{Relay, Signals};
use crate::{
    clock::unix_now,
    pipeline::streams::Part,
    upstream::{
        catch_up::{CatchUp, CatchUpError},
        demand::{Demand, Wanted},
        link::{Link, LinkError},
    },
};

/// The first pause after a failure, doubled after each further one.
const FIRST: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_secs(300);
/// How often what has no live subscription is fetched.
const POLL: Duration = Duration::from_secs(60);

impl Relay {
    /// Ends when nothing is to be expected of the connection any more.
    pub(super) async fn fetch_missed(&self, link: &Link, signals: &Signals) -> LinkError {
        if !has_sole_subscription(link) {
            // Live first: what comes while the past is fetched is not missed.
            signals.ready().await;
        }
        let mut demand = self.demand.clone();
        let mut done: HashSet<Part> = HashSet::new();
        let mut failures = 0;
        // It is told once for each time that something was to be fetched.
        let mut is_told = false;
        loop {
            let wanted = demand.borrow_and_update().wanted.clone();
            self.past.retain(&wanted);
            let gaps = signals.take_gaps();
            done.retain(|part| {
                !gaps.contains(part) && wanted.iter().any(|wanted| wanted.part == *part)
            });
            let todo: Vec<&Wanted> =
                wanted.iter().filter(|wanted| !done.contains(&wanted.part)).collect();
            self.standing.catch_up(|status| {
                status.parts = wanted.len();
                status.done = wanted.len() - todo.len();
            });
            let Some(next) = todo.first() else {
                if !is_told && !wanted.is_empty() {
                    self.tell_complete();
                    is_told = true;
                }
                signals.set_idle(true);
                self.wait_for_more(&mut demand, signals, &mut done).await;
                continue;
            };
            signals.set_idle(false);
            is_told &= todo.iter().all(|wanted| signals.not_live().contains(&wanted.part));
            let catch_up = CatchUp {
                link,
                source: &self.source,
                past: &self.past,
                standing: &self.standing,
                pace: self.pace(),
            };
            let fetched = tokio::select! {
                fetched = catch_up.part(next) => fetched,
                () = no_longer(&mut demand, next) => continue,
            };
            match fetched {
                Ok(()) => {
                    done.insert(next.part);
                    failures = 0;
                }
                Err(CatchUpError::Link(why)) if link.is_closed() => return why,
                Err(CatchUpError::Misbehaved(why)) if self.source.taken.is_junk() => {
                    return LinkError::Misbehaved(why);
                }
                Err(error) => {
                    failures += 1;
                    let pause =
                        FIRST.saturating_mul(2_u32.saturating_pow(failures - 1)).min(LONGEST);
                    self.tell_failed(&error, pause);
                    sleep(pause).await;
                }
            }
        }
    }

    async fn wait_for_more(
        &self,
        demand: &mut watch::Receiver<Demand>,
        signals: &Signals,
        done: &mut HashSet<Part>,
    ) {
        let not_live = signals.not_live();
        let next_poll = Instant::now() + POLL;
        tokio::select! {
            () = changed(demand) => {}
            () = signals.gap() => {}
            () = sleep_until(next_poll), if !not_live.is_empty() => {
                done.retain(|part| !not_live.contains(part));
            }
        }
    }

    fn tell_complete(&self) {
        let (stream, url) = (&*self.source.stream, &*self.source.url);
        let mut told = None;
        self.standing.catch_up(|status| {
            status.completed_at = Some(unix_now());
            told = Some((status.way.unwrap_or("nothing"), status.fetched));
        });
        if let Some((way, fetched)) = told {
            tracing::info!(stream, url, way, fetched, "caught up with upstream");
        }
    }

    fn tell_failed(&self, error: &CatchUpError, pause: Duration) {
        let (stream, url) = (&*self.source.stream, &*self.source.url);
        let (why, pause_s) = (error.to_string(), pause.as_secs());
        tracing::warn!(stream, url, why, pause_s, "cannot catch up with upstream; trying again");
        self.standing.catch_up(|status| status.trouble = Some(why));
    }
}

/// Whether the relay allows a single subscription: then live events come after what was missed.
pub(super) fn has_sole_subscription(link: &Link) -> bool {
    link.limits().max_subscriptions == Some(1)
}

/// Waits for another demand; for ever, when there is nobody to make one.
pub(super) async fn changed(demand: &mut watch::Receiver<Demand>) {
    if demand.changed().await.is_err() {
        std::future::pending().await
    }
}

/// Waits until a part is not wanted any more.
async fn no_longer(demand: &mut watch::Receiver<Demand>, part: &Wanted) {
    loop {
        changed(demand).await;
        if !demand.borrow_and_update().wanted.contains(part) {
            return;
        }
    }
}
