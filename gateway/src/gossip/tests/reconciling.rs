//! Comparing with peers: honest ones, and such as only want to cost time and memory.

use futures_util::{StreamExt, stream::FuturesUnordered};
use iroh::endpoint::{Connection, RecvStream, SendStream};

use super::{
    fetch::wire::{
        RECONCILE, Rest, TAKE, encode_opening, read_ids, read_topic, read_type, write_end,
        write_event,
    },
    sync::{
        Failure,
        wire::{self, Frame, MAX_MESSAGE, MAX_OFFERED},
    },
    *,
};
use crate::pipeline::Span as Times;

const ALWAYS: Times = Times { from: 0, until: u64::MAX };

fn greeting() -> Frame {
    Frame::Hello { state: [1; 16], spans: [ALWAYS; 3] }
}

fn open(message: &[u8]) -> Frame {
    let until = crate::clock::unix_now();
    Frame::Open { part: Part::Rest, span: Times { from: 0, until }, message: message.to_vec() }
}

/// The first message of a side that has nothing.
const EMPTY: &[u8] = &[0x61, 0, 0, 2, 0];

async fn stranger() -> Endpoint {
    Endpoint::builder(iroh::endpoint::presets::Minimal)
        .relay_mode(iroh::RelayMode::Disabled)
        .alpns(vec![SYNC_ALPN.to_vec()])
        .bind()
        .await
        .unwrap()
}

fn address_of(stranger: &Endpoint) -> String {
    let at = stranger.bound_sockets().into_iter().find(SocketAddr::is_ipv4).unwrap();
    format!("{}@127.0.0.1:{}", stranger.id(), at.port())
}

async fn begin(connection: &Connection, topic: &TopicName) -> (SendStream, RecvStream) {
    let (mut send, receive) = connection.open_bi().await.unwrap();
    send.write_all(&encode_opening(RECONCILE, topic)).await.unwrap();
    (send, receive)
}

/// Says all of it and returns what the gateway said before it gave up.
async fn say(connection: &Connection, topic: &TopicName, frames: &[Frame]) -> Vec<Frame> {
    // A peer may lead again after a moment.
    tokio::time::sleep(Duration::from_millis(600)).await;
    let (mut send, mut receive) = begin(connection, topic).await;
    let (first, frames) = frames.split_first().unwrap();
    wire::write(&mut send, first).await.unwrap();
    // When the stream is reset, what was said before it may be lost.
    let answer = match first {
        Frame::Hello { .. } => wire::read(&mut receive).await.unwrap(),
        _ => None,
    };
    let saying = async {
        for frame in frames {
            if wire::write(&mut send, frame).await.is_err() {
                break;
            }
        }
    };
    let hearing = async {
        let mut heard = Vec::from_iter(answer);
        while let Ok(Some(frame)) = wire::read(&mut receive).await {
            heard.push(frame);
        }
        heard
    };
    let (heard, ()) =
        timeout(Duration::from_secs(30), async { tokio::join!(hearing, saying) }).await.unwrap();
    heard
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_meet_have_the_same_afterwards_and_then_say_little() {
    let topic = name("test");
    let topics = std::slice::from_ref(&topic);
    let often = SyncConfig { interval_s: 1, ..SyncConfig::default() };
    let a = Gateway::start_with(alone(), topics, often.clone()).await;
    let peers = vec![a.address()];
    let b = Gateway::start_with(DiscoveryConfig { peers, ..alone() }, &[], often.clone()).await;
    let only_a: Vec<_> =
        (0..1_500).map(|n| event_at(1_700_000_000 + n, 1, &format!("a {n}"))).collect();
    futures_util::future::join_all(only_a.iter().map(|event| a.publish(event))).await;
    // As if it had been in the topic before.
    b.stop().await;
    let peers = vec![a.address()];
    let b = Gateway::start_with(DiscoveryConfig { peers, ..alone() }, topics, often).await;
    let large = event(1, &"x".repeat(60_000));
    b.publish(&large).await;
    b.waits_for_neighbors().await;
    let ids: Vec<_> = only_a.iter().map(|event| event.id).collect();
    b.log.waits_for(&ids, &topic).await;
    a.log.waits_for(&[large.id], &topic).await;
    assert_eq!(b.log.origin(&only_a[0].id), "topic/test");

    // Nothing changes any more: one greeting for each comparison.
    let unchanged = |gateway: &Gateway| {
        let text = gateway.metrics.render();
        let line = text.lines().find(|line| line.contains(r#"syncs_total{cause="unchanged"}"#));
        line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
    };
    let settles = async {
        while unchanged(&a) + unchanged(&b) < 3 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(Duration::from_secs(30), settles).await.expect("it settles");
    let progress = b.gossip.membership().sync(&topic).unwrap();
    let finished = async {
        let mut progress = progress;
        progress.wait_for(|progress| progress.finished).await.unwrap().clone()
    };
    let finished = timeout(Duration::from_secs(10), finished).await.unwrap();
    assert_eq!((finished.neighbors_left, finished.needed), (0, 0), "{finished:?}");
    assert!(b.gossip.membership().sync(&name("elsewhere")).is_err());
    b.stop().await;
    a.stop().await;
}

/// Ranges are small in the tests. Who leads has nothing here, so the other side asks for the splits;
/// where two gateways meet, it is the other way round for one of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_topic_is_compared_in_ranges() {
    let topic = name("test");
    let follower = Gateway::start(alone(), std::slice::from_ref(&topic)).await;
    let peers = vec![follower.address()];
    // It is in another topic, so nothing but this comparison brings it anything.
    let leader = Gateway::start(DiscoveryConfig { peers, ..alone() }, &[name("other")]).await;
    let events: Vec<_> =
        (0..1_500).map(|n| event_at(1_700_000_000 + n / 2, 1, &format!("{n}"))).collect();
    let published = events.iter().map(|event| follower.publish(event));
    futures_util::future::join_all(published).await;
    let state = Arc::new(TopicState::new(topic.clone(), leader.metrics.clone()));
    // Joined for the pipeline alone: nothing but this test compares.
    leader.joined.insert(topic.clone());
    let (desk, _calls) =
        leader.gossip.membership.shared.library.open(state.clone(), Retell::off(state));
    let peer = follower.gossip.id;
    let lead =
        async |deep| leader.gossip.membership.shared.library.lead(&desk, peer, deep).await.unwrap();
    let report = lead(true).await;
    assert_eq!((report.pulled.gained, report.offered), (1_500, 0));
    assert!(report.ranges >= 6, "two small parts, and four ranges at least: {report:?}");
    assert!(events.iter().all(|event| leader.log.has(&event.id, &topic)));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let report = lead(false).await;
    assert_eq!((report.pulled.fetched, report.ranges, report.offered), (0, 3, 0));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!lead(true).await.unchanged);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(lead(true).await.unchanged);
    leader.stop().await;
    follower.stop().await;
}

/// The other side remembers for an hour what we said is gone here. When we have forgotten it, that is no
/// promise which it breaks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_remembers_what_we_forgot_is_no_liar() {
    let topic = name("test");
    let honest = Gateway::start(alone(), std::slice::from_ref(&topic)).await;
    let peers = vec![honest.address()];
    let a = Gateway::start(DiscoveryConfig { peers, ..alone() }, &[name("other")]).await;
    let there = honest.gossip.membership.shared.library.desk(&topic).unwrap();
    let forgotten: Vec<_> = (0..20).map(|n| (1_700_000_000, EventId([n; 32]))).collect();
    there.gone_there(a.gossip.id, Part::Rest, &forgotten);
    let state = Arc::new(TopicState::new(topic.clone(), a.metrics.clone()));
    let (desk, _calls) = a.gossip.membership.shared.library.open(state.clone(), Retell::off(state));
    let peer = honest.gossip.id;
    let lead = async || a.gossip.membership.shared.library.lead(&desk, peer, true).await.unwrap();
    let report = lead().await;
    assert_eq!((report.pulled.gone, report.pulled.lost), (20, 0));
    assert!(!a.metrics.render().contains("promise"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(lead().await.pulled.gone, 0, "now it is the same on both sides");
    a.stop().await;
    honest.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_comparison_ends_when_the_topic_is_left() {
    let topic = name("test");
    let a = Gateway::start(alone(), &[name("other")]).await;
    let join = a.gossip.membership().join(topic.clone(), HowJoined::Command);
    join.await.unwrap();
    let endpoint = stranger().await;
    let address = peers::parse(&a.address()).unwrap();
    let connection = endpoint.connect(address, SYNC_ALPN).await.unwrap();
    let (mut send, mut receive) = begin(&connection, &topic).await;
    wire::write(&mut send, &greeting()).await.unwrap();
    assert!(matches!(wire::read(&mut receive).await, Ok(Some(Frame::Hello { .. }))));
    let library = a.gossip.membership.shared.library.clone();
    let desk = library.desk(&topic).unwrap();
    // Somebody watches a neighbor that will not come.
    let progress = desk.watch(vec![endpoint.id()]).unwrap();
    a.gossip.membership().leave(&topic, false).await.unwrap();
    let over = timeout(Duration::from_secs(5), wire::read(&mut receive)).await.expect("it ends");
    assert!(!matches!(over, Ok(Some(_))), "{over:?}");
    assert!(progress.borrow().finished);
    assert!(library.left_lately(&topic));
    endpoint.close().await;
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_leave_room_for_neighbors() {
    let topic = name("test");
    let a = Gateway::start(alone(), std::slice::from_ref(&topic)).await;
    let address = peers::parse(&a.address()).unwrap();
    let mut open = Vec::new();
    for n in 0..6 {
        let endpoint = stranger().await;
        let connection = endpoint.connect(address.clone(), SYNC_ALPN).await.unwrap();
        let (mut send, mut receive) = begin(&connection, &topic).await;
        wire::write(&mut send, &greeting()).await.unwrap();
        let heard = wire::read(&mut receive).await.unwrap().unwrap();
        assert_eq!(heard == Frame::NotNow, n >= 4, "{n}: {heard:?}");
        open.push((endpoint, connection, send, receive));
    }
    assert!(a.gossip.membership.shared.library.following.available_permits() >= 12);
    for (endpoint, ..) in open {
        endpoint.close().await;
    }
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_finds_no_place_to_lead_takes_nothing() {
    let topic = name("test");
    let a = Gateway::start(alone(), std::slice::from_ref(&topic)).await;
    let library = &a.gossip.membership.shared.library;
    let desk = library.desk(&topic).unwrap();
    let peer = iroh::SecretKey::generate().public();
    let free = library.following.available_permits();
    let all = library.following.acquire_many(free as u32).await.unwrap();
    let ours = desk.lead(peer).unwrap();
    assert!(library.place(&desk, peer).is_none());
    assert!(desk.lead(peer).is_none(), "ours is under way yet");
    drop((all, ours));
    let strangers = library.strangers.available_permits();
    // Not a moment later: it was not its turn.
    let place = library.place(&desk, peer).unwrap();
    assert_eq!(library.strangers.available_permits(), strangers - 1);
    assert!(library.place(&desk, peer).is_none(), "there is one with each at a time");
    assert_eq!(library.strangers.available_permits(), strangers - 1);
    drop(place);
    assert_eq!(library.following.available_permits(), free);
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_leads_badly_gets_nothing_and_is_shut_out() {
    let topic = name("test");
    let a = Gateway::start(alone(), std::slice::from_ref(&topic)).await;
    a.publish(&event(1, "kept")).await;
    let endpoint = stranger().await;
    let address = peers::parse(&a.address()).unwrap();
    let connection = endpoint.connect(address.clone(), SYNC_ALPN).await.unwrap();
    let say = async |frames: &[Frame]| say(&connection, &topic, frames).await;
    let greeted = |heard: &[Frame]| matches!(heard.first(), Some(Frame::Hello { .. }));

    // What an honest one says is answered.
    let (mut send, mut receive) = begin(&connection, &topic).await;
    for frame in [greeting(), open(EMPTY)] {
        wire::write(&mut send, &frame).await.unwrap();
    }
    assert!(matches!(wire::read(&mut receive).await, Ok(Some(Frame::Hello { .. }))));
    assert!(matches!(wire::read(&mut receive).await, Ok(Some(Frame::Compare(_)))));
    // And while that goes on, it may not begin another.
    assert_eq!(say(&[greeting()]).await, [Frame::NotNow]);
    send.finish().unwrap();
    let unknown = begin(&connection, &name("unknown")).await;
    let (mut send, mut receive) = unknown;
    wire::write(&mut send, &greeting()).await.unwrap();
    assert_eq!(wire::read(&mut receive).await.unwrap(), Some(Frame::NotNow), "an unknown topic");

    // Out of turn, out of order, out of bounds.
    assert!(say(&[Frame::Settle]).await.is_empty());
    let heard = say(&[greeting(), Frame::Compare(EMPTY.to_vec())]).await;
    assert!(greeted(&heard) && heard.len() == 1);
    let older = Frame::Open {
        part: Part::Requests,
        span: Times { from: 0, until: 5 },
        message: EMPTY.to_vec(),
    };
    let heard = say(&[greeting(), open(EMPTY), older]).await;
    assert!(greeted(&heard) && heard.len() <= 2, "parts go in their order: {heard:?}");
    let future = Frame::Open { part: Part::Rest, span: ALWAYS, message: EMPTY.to_vec() };
    assert_eq!(say(&[greeting(), future]).await.len(), 1, "later than we keep");
    assert_eq!(say(&[greeting(), open(b"GET / HTTP/1.1")]).await.len(), 1);
    // Endless rounds.
    let rounds = vec![Frame::Compare(EMPTY.to_vec()); 400];
    let heard = say(&[vec![greeting(), open(EMPTY)], rounds].concat()).await;
    assert!(heard.len() < 260, "{}", heard.len());
    // Offers without end.
    let ids = (0..MAX_OFFERED).map(|n| {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&n.to_be_bytes());
        EventId(id)
    });
    let offers = vec![Frame::Offer(ids.collect()); 400];
    let heard = say(&[vec![greeting(), open(EMPTY)], offers].concat()).await;
    assert!(greeted(&heard) && heard.len() <= 2);
    // A frame of four gigabytes. It is the eighth time.
    tokio::time::sleep(Duration::from_millis(600)).await;
    let (mut send, mut receive) = begin(&connection, &topic).await;
    wire::write(&mut send, &greeting()).await.unwrap();
    assert!(matches!(wire::read(&mut receive).await, Ok(Some(Frame::Hello { .. }))));
    send.write_all(&[0xff; 4]).await.unwrap();
    assert!(wire::read(&mut receive).await.is_err());

    // From now on nobody listens to it.
    let refused = async {
        let again = endpoint.connect(address.clone(), SYNC_ALPN).await.unwrap();
        again.closed().await;
    };
    timeout(Duration::from_secs(5), refused).await.expect("it is shut out");
    // Gossip is another matter, and so is everybody else.
    let other = stranger().await;
    let connection = other.connect(address, SYNC_ALPN).await.unwrap();
    let (mut send, mut receive) = begin(&connection, &topic).await;
    wire::write(&mut send, &greeting()).await.unwrap();
    assert!(matches!(wire::read(&mut receive).await, Ok(Some(Frame::Hello { .. }))));
    let text = a.metrics.render();
    assert!(text.contains("lies_total"), "{text}");
    endpoint.close().await;
    other.close().await;
    a.stop().await;
}

/// What a peer does that is led.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Follows {
    WithoutGreeting,
    Endlessly,
    WithEmptyPromises,
    NotAtAll,
    WithSplitsForEver,
    UntilTheMiddle,
}

async fn follow(endpoint: Endpoint, how: Follows) {
    loop {
        let Some(incoming) = endpoint.accept().await else { return };
        let Ok(connection) = incoming.await else { continue };
        let mut streams = FuturesUnordered::new();
        loop {
            tokio::select! {
                Some(()) = streams.next(), if !streams.is_empty() => {}
                stream = connection.accept_bi() => match stream {
                    Ok((send, receive)) => streams.push(one(&connection, send, receive, how)),
                    Err(_) => break,
                }
            }
        }
    }
}

async fn one(connection: &Connection, mut send: SendStream, mut receive: RecvStream, how: Follows) {
    let kind = read_type(&mut receive).await.unwrap();
    read_topic(&mut receive).await.unwrap();
    if kind == TAKE {
        receive.read_exact(&mut [0; 4]).await.unwrap();
        read_ids(&mut receive, 1_000).await.unwrap();
        write_end(&mut send, &Rest::default()).await.unwrap();
        send.finish().unwrap();
        return;
    }
    let _ = serve(&mut send, &mut receive, how).await;
    if how == Follows::UntilTheMiddle {
        connection.close(0_u32.into(), b"gone");
    }
}

async fn serve(
    send: &mut SendStream,
    receive: &mut RecvStream,
    how: Follows,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    wire::read(receive).await?;
    match how {
        Follows::WithoutGreeting => {
            wire::write(send, &Frame::Settled).await?;
        }
        Follows::NotAtAll => {
            wire::write(send, &Frame::NotNow).await?;
        }
        _ => {
            wire::write(send, &greeting()).await?;
        }
    }
    let mut from = 1;
    while let Some(frame) = wire::read(receive).await? {
        let answer = match (how, frame) {
            (Follows::UntilTheMiddle, _) => return Ok(()),
            (Follows::WithSplitsForEver, Frame::Open { .. }) => {
                from += 1;
                Frame::Split(from)
            }
            // A fingerprint that is never right: the other side splits and asks again.
            (Follows::Endlessly, _) => Frame::Compare([&[0x61, 0, 0, 1][..], &[7; 16]].concat()),
            // A thousand ids that there are not.
            (_, Frame::Open { .. } | Frame::Compare(_)) => {
                let ids: Vec<u8> = (0..1_000_u32)
                    .flat_map(|n| [[9; 4], n.to_be_bytes()].concat().repeat(4))
                    .collect();
                let message = [&[0x61, 0, 0, 2, 0x87, 0x68][..], &ids].concat();
                assert!(message.len() <= MAX_MESSAGE);
                Frame::Compare(message)
            }
            _ => continue,
        };
        wire::write(send, &answer).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_follows_badly_costs_little() {
    let topic = name("test");
    for how in [
        Follows::WithoutGreeting,
        Follows::Endlessly,
        Follows::WithEmptyPromises,
        Follows::NotAtAll,
        Follows::WithSplitsForEver,
        Follows::UntilTheMiddle,
    ] {
        let bad = stranger().await;
        let peers = vec![address_of(&bad)];
        let a = Gateway::start(DiscoveryConfig { peers, ..alone() }, &[name("other")]).await;
        let state = Arc::new(TopicState::new(topic.clone(), a.metrics.clone()));
        let (desk, _calls) =
            a.gossip.membership.shared.library.open(state.clone(), Retell::off(state));
        let leading = a.gossip.membership.shared.library.lead(&desk, bad.id(), true);
        let following = follow(bad.clone(), how);
        let led = tokio::select! {
            led = timeout(Duration::from_secs(20), leading) => led.expect("it ends"),
            () = following => panic!("the endpoint is open"),
        };
        match (how, &led) {
            (Follows::NotAtAll, Err(Failure::NotNow))
            | (Follows::UntilTheMiddle | Follows::WithEmptyPromises, Err(Failure::Broken(_)))
            | (
                Follows::WithoutGreeting | Follows::Endlessly | Follows::WithSplitsForEver,
                Err(Failure::Lie(_)),
            ) => {}
            other => panic!("{other:?}"),
        }
        let lies = a.metrics.render().contains("lies_total{");
        let honest = matches!(how, Follows::NotAtAll | Follows::UntilTheMiddle);
        assert_eq!(lies, !honest, "{how:?}");
        a.stop().await;
        bad.close().await;
    }
}

/// Its connection may be lost, or the time of the comparison be over, while an answer still comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_of_a_request_that_is_given_up_counts() {
    let topic = name("test");
    let slow = stranger().await;
    let peers = vec![address_of(&slow)];
    let a = Gateway::start(DiscoveryConfig { peers, ..alone() }, &[name("other")]).await;
    a.joined.insert(topic.clone());
    let state = Arc::new(TopicState::new(topic.clone(), a.metrics.clone()));
    let library = &a.gossip.membership.shared.library;
    let (desk, _calls) = library.open(state.clone(), Retell::off(state));
    let events: Vec<_> = (0..3).map(|n| event(1, &format!("{n}"))).collect();
    let ids: Vec<_> = events.iter().map(|event| event.id).collect();
    let serving = async {
        let connection = loop {
            // Gossip tries it too, and finds no gossip there.
            let Ok(connection) = slow.accept().await.unwrap().await else { continue };
            break connection;
        };
        let (mut send, _receive) = connection.accept_bi().await.unwrap();
        for event in &events {
            write_event(&mut send, event.json()).await.unwrap();
        }
        std::future::pending::<()>().await;
    };
    let gained = std::sync::atomic::AtomicUsize::new(0);
    let told = |pulled: &super::sync::Pulled| {
        gained.fetch_add(pulled.gained, std::sync::atomic::Ordering::Relaxed);
    };
    let given_up = async {
        a.log.waits_for(&ids, &topic).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    };
    tokio::select! {
        pulled = library.pull(&desk, slow.id(), Part::Rest, ids.clone(), &told) => {
            panic!("it has not ended: {pulled:?}")
        }
        () = serving => {}
        () = given_up => {}
    }
    assert_eq!(gained.into_inner(), 3);
    a.stop().await;
    slow.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_without_our_protocol_is_known_as_such() {
    let deaf = Endpoint::builder(iroh::endpoint::presets::Minimal)
        .relay_mode(iroh::RelayMode::Disabled)
        .alpns(vec![iroh_gossip::ALPN.to_vec()])
        .bind()
        .await
        .unwrap();
    let peers = vec![address_of(&deaf)];
    let a = Gateway::start(DiscoveryConfig { peers, ..alone() }, &[name("other")]).await;
    let state = Arc::new(TopicState::new(name("test"), a.metrics.clone()));
    let (desk, _calls) = a.gossip.membership.shared.library.open(state.clone(), Retell::off(state));
    let accepting = async {
        while let Some(incoming) = deaf.accept().await {
            let _ = incoming.await;
        }
    };
    let led = tokio::select! {
        led = a.gossip.membership.shared.library.lead(&desk, deaf.id(), true) => led,
        () = accepting => panic!("the endpoint is open"),
    };
    assert!(matches!(led, Err(Failure::DoesNotSpeak)), "{led:?}");
    a.stop().await;
    deaf.close().await;
}
