use iroh::SecretKey;

use super::*;
use crate::protocol::Reason;

fn peer(n: u8) -> EndpointId {
    SecretKey::from_bytes(&[n; 32]).public()
}

fn id(n: usize) -> EventId {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&n.to_be_bytes());
    EventId(id)
}

fn many(from: usize) -> Vec<EventId> {
    (from..from + MAX_IDS).map(id).collect()
}

fn schedule() -> Schedule {
    Schedule::new(Arc::default())
}

/// Ends a request that brought nothing.
fn fails(schedule: &mut Schedule, job: Job, now: Instant) {
    schedule.ended(job, now);
}

#[test]
fn a_slow_peer_holds_up_only_itself() {
    let mut schedule = schedule();
    let now = Instant::now();
    (0..10).for_each(|n| schedule.add(peer(1), many(n * MAX_IDS), now));
    let slow = [schedule.start(&[], now).unwrap(), schedule.start(&[], now).unwrap()];
    assert!(schedule.start(&[], now).is_none());
    schedule.add(peer(2), vec![id(100_000)], now);
    let job = schedule.start(&[], now).unwrap();
    assert_eq!((job.peer(), job.ids()), (peer(2), &[id(100_000)][..]));
    let [first, _second] = slow;
    fails(&mut schedule, first, now);
    assert_eq!(schedule.start(&[], now).unwrap().peer(), peer(1));
}

#[test]
fn a_thousand_bogus_announcements_leave_room_for_a_new_one() {
    let mut schedule = schedule();
    let mut now = Instant::now();
    let neighbors = [peer(1), peer(2), peer(3)];
    for n in 0..1_000 {
        schedule.add(peer(1), many(n * MAX_IDS), now);
        while let Some(job) = schedule.start(&neighbors, now) {
            fails(&mut schedule, job, now);
        }
        now += Duration::from_millis(10);
    }
    assert!(schedule.retries.len() <= RETRIES && schedule.fresh.is_empty());
    assert!(schedule.under_way.len() <= UNDER_WAY, "{}", schedule.under_way.len());
    // The retries are all under way and bring nothing.
    now += Duration::from_secs(60);
    let running: Vec<_> = std::iter::from_fn(|| schedule.start(&neighbors, now)).collect();
    assert_eq!(running.len(), LATER_REQUESTS);
    schedule.add(peer(4), vec![id(1_000_000)], now);
    assert_eq!(schedule.start(&neighbors, now).unwrap().ids(), [id(1_000_000)]);
}

#[test]
fn a_flood_of_one_peer_waits_among_the_retries() {
    let mut schedule = schedule();
    let now = Instant::now();
    for n in 0..150 {
        schedule.add(peer(1), many(n * MAX_IDS), now);
    }
    assert_eq!((schedule.fresh.len(), schedule.retries.len()), (PEER_FRESH, 150 - PEER_FRESH));
    for n in 150..1_000 {
        schedule.add(peer(n as u8), many(n * MAX_IDS), now);
    }
    assert!(schedule.fresh.len() <= FRESH && schedule.retries.len() <= RETRIES);
    assert!(schedule.under_way.len() <= UNDER_WAY);
    let held = schedule.fresh.iter().chain(schedule.retries.iter().map(|(_, pull)| pull));
    assert_eq!(held.map(|pull| pull.ids.len()).sum::<usize>(), schedule.under_way.len());
}

#[test]
fn small_announcements_of_one_peer_share_a_request() {
    let mut schedule = schedule();
    let now = Instant::now();
    schedule.add(peer(1), many(0), now);
    for n in [1_000, 1_001, 1_001] {
        schedule.add(peer(1), vec![id(n)], now);
    }
    schedule.add(peer(2), vec![id(1_002)], now);
    let ids: Vec<_> =
        std::iter::from_fn(|| schedule.start(&[], now)).map(|job| job.ids().len()).collect();
    assert_eq!(ids, [MAX_IDS, 2, 1]);
}

#[test]
fn attempts_go_round_the_neighbors_with_pauses_and_end() {
    let mut schedule = schedule();
    let mut now = Instant::now();
    schedule.add(peer(9), vec![id(1)], now);
    let (mut asked, mut waited) = (Vec::new(), Duration::ZERO);
    loop {
        while let Some(job) = schedule.start(&[peer(1), peer(9)], now) {
            asked.push(job.peer());
            fails(&mut schedule, job, now);
        }
        let Some(due) = schedule.wake(now) else { break };
        waited += due - now;
        now = due;
    }
    assert_eq!(asked.len(), PAUSES.len() + 1);
    assert_eq!(asked[..4], [peer(9), peer(1), peer(9), peer(1)]);
    assert_eq!(waited, PAUSES.iter().sum::<Duration>());
    assert!(schedule.under_way.is_empty(), "it may be announced again");
}

#[test]
fn invalid_is_never_final_and_liars_are_not_asked_again() {
    let mut schedule = schedule();
    let now = Instant::now();
    schedule.add(peer(1), vec![id(1), id(2), id(3)], now);
    let mut job = schedule.start(&[], now).unwrap();
    let invalid = Outcome::Refused(Reason::invalid("a bad signature"));
    job.note(id(1), &invalid);
    job.note(id(2), &Outcome::Refused(Reason::blocked("no")));
    job.note(id(3), &Outcome::Refused(Reason::error("the disk is full")));
    schedule.ended(job, now);
    assert!(schedule.refused.contains(&id(2)) && !schedule.refused.contains(&id(1)));

    // Nobody else is there: the last hop is asked again, but not for its invalid copy.
    let now = now + PAUSES[0];
    let mut job = schedule.start(&[], now).unwrap();
    assert_eq!(job.wanted(), [id(3)]);
    job.note(id(3), &Outcome::Stored(1));
    schedule.ended(job, now);
    let now = now + PAUSES[1];
    let mut job = schedule.start(&[], now).unwrap();
    assert!(job.wanted().is_empty());
    schedule.ended(job, now);

    // Somebody else came, and lies.
    let now = now + PAUSES[2];
    let mut job = schedule.start(&[peer(2)], now).unwrap();
    assert_eq!((job.peer(), job.wanted()), (peer(2), vec![id(1)]));
    job.distrust();
    schedule.ended(job, now);
    let now = now + PAUSES[3];
    assert!(schedule.start(&[peer(2)], now).is_none());
    assert!(schedule.retries.is_empty() && schedule.under_way.is_empty());
    schedule.add(peer(1), vec![id(1), id(2)], now);
    assert_eq!(
        schedule.start(&[], now).unwrap().ids(),
        [id(1)],
        "only the invalid one is asked for"
    );
}
