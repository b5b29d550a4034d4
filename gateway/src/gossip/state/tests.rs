//! What is told of a topic as it goes on.

use iroh::SecretKey;

use super::*;

#[test]
fn a_topic_goes_through_its_phases() {
    let state = Arc::new(TopicState::new(TopicName::new("t").unwrap(), Default::default()));
    let peer = SecretKey::from_bytes(&[1; 32]).public();
    assert_eq!(state.phase(), TopicPhase::Starting);
    state.failed("gossip did not answer");
    assert_eq!(state.phase(), TopicPhase::Failed);
    let status = state.status(HowJoined::Command, 7);
    assert_eq!(status.reason.as_deref(), Some("gossip did not answer"));
    state.subscribed(true);
    assert_eq!(state.phase(), TopicPhase::Discovering);
    state.reset([]);
    state.step(Step::DhtLookup, Instant::now(), Ok("nobody".into()));
    assert_eq!(state.phase(), TopicPhase::Alone, "there was never anybody to lose");
    state.found(peer, FoundBy::Mdns);
    state.found(peer, FoundBy::Dht);
    state.up(peer);
    state.up(peer);
    let status = state.status(HowJoined::Command, 7);
    assert_eq!(status.state, TopicPhase::Joined);
    assert_eq!(status.reason, None);
    assert_eq!(status.neighbors.len(), 1);
    assert_eq!(status.neighbors[0].found_by, FoundBy::Mdns, "the first finder counts");
    assert!(status.first_neighbor_ms.is_some());
    let (one, two) = (state.busy(Work::Sync), state.busy(Work::Sync));
    assert_eq!(state.phase(), TopicPhase::Syncing);
    let rotation = state.busy(Work::Rotation);
    assert_eq!(state.phase(), TopicPhase::Rotating);
    drop((one, rotation));
    assert_eq!(state.phase(), TopicPhase::Syncing);
    drop(two);
    state.down(peer);
    assert_eq!(state.phase(), TopicPhase::Disconnected);
    let later = Instant::now().checked_sub(CUT_OFF);
    state.known().left_alone = later;
    assert_eq!(state.phase(), TopicPhase::Alone);
    let text = serde_json::to_string(&state.status(HowJoined::Command, 7)).unwrap();
    assert!(text.contains("dht_lookup") && text.contains(r#""how":"command""#), "{text}");
}

#[test]
fn what_ends_late_does_not_bring_a_topic_back_into_the_figures() {
    let metrics = Arc::new(Metrics::default());
    let [left, stays] = ["left", "stays"]
        .map(|name| Arc::new(TopicState::new(TopicName::new(name).unwrap(), metrics.clone())));
    let peers = [1, 2].map(|n| SecretKey::from_bytes(&[n; 32]).public());
    for state in [&left, &stays] {
        state.up(peers[0]);
        assert!(metrics.render().contains(state.name().as_str()));
    }
    left.over();
    left.up(peers[1]);
    left.down(peers[0]);
    left.reset(peers);
    left.mirror(1, Some(&*stays));
    left.mirror(1, None);
    let figures = metrics.render();
    assert!(!figures.contains(r#""left""#) && figures.contains(r#""stays""#), "{figures}");
}

#[test]
fn a_step_tells_how_often_it_went_how() {
    let metrics = Arc::new(Metrics::default());
    let state = TopicState::new(TopicName::new("t").unwrap(), metrics.clone());
    let step = |result: Result<&str, &str>| {
        let result = result.map(str::to_owned).map_err(str::to_owned);
        state.step(Step::DhtLookup, Instant::now(), result);
    };
    step(Ok("2 records of others"));
    step(Err("timed out"));
    step(Ok("1 record of others"));
    let peer = SecretKey::from_bytes(&[1; 32]).public();
    state.found(peer, FoundBy::Dht);
    state.up(peer);
    let status = state.status(HowJoined::Command, 7);
    let result = &status.steps[&Step::DhtLookup];
    assert_eq!((result.attempts, result.failures, result.neighbors), (3, 1, 1));
    assert!(result.ok && result.result.starts_with('1'), "{result:?}");
    assert_eq!(result.error.as_deref(), Some("timed out"));
    let text = metrics.render();
    for line in [
        r#"discovery_steps_total{step="dht_lookup",result="ok"} 2"#,
        r#"discovery_steps_total{step="dht_lookup",result="failed"} 1"#,
        r#"neighbors_found_total{by="dht"} 1"#,
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
}
