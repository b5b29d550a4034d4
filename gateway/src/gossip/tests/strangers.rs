//! What a peer gets that is not one of ours, or behaves as if it were not.

use iroh::endpoint::Connection;

use super::{fetch::Announcement, *};

async fn stranger() -> Endpoint {
    Endpoint::builder(iroh::endpoint::presets::Minimal)
        .relay_mode(iroh::RelayMode::Disabled)
        .bind()
        .await
        .unwrap()
}

async fn ask(connection: &Connection, request: &[u8]) -> Result<Vec<u8>, String> {
    let (mut send, mut receive) = connection.open_bi().await.map_err(|e| e.to_string())?;
    send.write_all(request).await.unwrap();
    send.finish().unwrap();
    receive.read_to_end(100_000).await.map_err(|e| e.to_string())
}

/// The end of an answer: there is no more to it.
const NOTHING: &[u8] = &[0; 7];

fn request(topic: &str, id: &EventId) -> Vec<u8> {
    let mut bytes = vec![1, 0, topic.len() as u8];
    bytes.extend_from_slice(topic.as_bytes());
    bytes.extend_from_slice(&[0, 1]);
    bytes.extend_from_slice(&id.0);
    bytes
}

fn answer_of(event: &Event) -> Vec<u8> {
    let json = event.json().as_bytes();
    [&(json.len() as u32).to_be_bytes(), json, NOTHING].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_misbehaves_on_the_sync_alpn_gets_nothing() {
    let topic = name("test");
    let a = Gateway::start(alone(), std::slice::from_ref(&topic)).await;
    let kept = event(1, "kept");
    a.publish(&kept).await;
    let endpoint = stranger().await;
    let address = peers::parse(&a.address()).unwrap();
    let connection = endpoint.connect(address.clone(), SYNC_ALPN).await.unwrap();
    let ask = async |request: &[u8]| ask(&connection, request).await;
    assert_eq!(ask(&request("test", &kept.id)).await.unwrap(), answer_of(&kept));
    assert_eq!(ask(&request("other", &kept.id)).await.unwrap(), NOTHING, "an unknown topic");
    assert_eq!(ask(&request("test", &EventId([9; 32]))).await.unwrap(), NOTHING, "an unknown id");
    for bad in [&[][..], &[9], &[1, 255, 255], &[1, 0, 4, b't'], b"GET / HTTP/1.1\r\n\r\n"] {
        assert!(ask(bad).await.is_err() || bad.len() < 9, "{bad:?}");
    }
    // Only so many connections of one peer; the ones in place go on working.
    let mut more = Vec::new();
    for _ in 0..6 {
        more.push(endpoint.connect(address.clone(), SYNC_ALPN).await.unwrap());
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let closed = more.iter().filter(|connection| connection.close_reason().is_some()).count();
    assert_eq!(closed, 5);
    assert!(ask(&request("test", &kept.id)).await.is_ok());
    endpoint.close().await;
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_waits_for_an_event_that_is_on_its_way() {
    let topic = name("test");
    let a = Gateway::start(alone(), std::slice::from_ref(&topic)).await;
    let endpoint = stranger().await;
    let address = peers::parse(&a.address()).unwrap();
    let connection = endpoint.connect(address, SYNC_ALPN).await.unwrap();
    let late = event(1, "late");
    let request = request("test", &late.id);
    let publish = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        a.publish(&event(1, "another")).await;
        a.publish(&late).await;
    };
    let (answer, ()) = tokio::join!(ask(&connection, &request), publish);
    assert_eq!(answer.unwrap(), answer_of(&late));
    endpoint.close().await;
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_peer_has_only_so_many_gossip_connections() {
    let a = Gateway::start(alone(), &[name("test")]).await;
    let endpoint = stranger().await;
    let address = peers::parse(&a.address()).unwrap();
    let mut connections = Vec::new();
    for _ in 0..6 {
        connections.push(endpoint.connect(address.clone(), iroh_gossip::ALPN).await.unwrap());
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let is_open = |connection: &Connection| connection.close_reason().is_none();
    // The newest ones: a peer that dials again does not use what it had.
    assert_eq!(connections.iter().filter(|connection| is_open(connection)).count(), 2);
    assert!(is_open(&connections[5]));
    connections.iter().for_each(|connection| connection.close(0_u32.into(), b"over"));
    // The places come back.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let again = endpoint.connect(address, iroh_gossip::ALPN).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(is_open(&again));
    assert_eq!(a.gossip.trouble(), None);
    endpoint.close().await;
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gossip_and_endpoint_that_died_or_are_wedged_are_replaced() {
    let topics = [name("one"), name("two")];
    let a = Gateway::start(alone(), &topics).await;
    let peers = vec![a.address()];
    let b = Gateway::start(DiscoveryConfig { peers, ..alone() }, &topics).await;
    b.waits_for_neighbors().await;
    // What breaks a part of B, and what is said of it.
    for (n, trouble) in ["gossip has ended", "takes no more connections", "takes no messages"]
        .into_iter()
        .enumerate()
    {
        let mut stacks = b.gossip.net.follow();
        match n {
            0 => b.gossip.net.gossip().shutdown().await.unwrap(),
            1 => b.gossip.net.endpoint().close().await,
            _ => (0..3).for_each(|_| b.gossip.keeper.health.wedged()),
        }
        timeout(Duration::from_secs(30), stacks.changed()).await.expect("it is replaced").unwrap();
        assert!(b.metrics.render().contains(trouble), "{}", b.metrics.render());
        assert_eq!(b.gossip.trouble(), None);
        // All topics go on, both ways, without a restart.
        for (from, to, way) in [(&a, &b, "to"), (&b, &a, "from")] {
            let event = event(1, &format!("{way} {n}"));
            from.publish(&event).await;
            for topic in &topics {
                to.log.waits_for(&[event.id], topic).await;
            }
        }
    }
    a.stop().await;
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_liar_does_not_keep_an_event_from_us() {
    let topic = name("test");
    let honest = Gateway::start(alone(), std::slice::from_ref(&topic)).await;
    let real = event(1, "real");
    honest.publish(&real).await;
    let forged = real.json().replace(r#""tags":[]"#, r#""tags":[["-"]]"#);
    assert_eq!(Event::parse(&forged).unwrap().id, real.id);
    let liar = stranger().await;
    liar.set_alpns(vec![SYNC_ALPN.to_vec()]);
    let lies = async {
        loop {
            // Gossip tries it too, and finds no gossip there.
            let Ok(connection) = liar.accept().await.unwrap().await else { continue };
            let (mut send, mut receive) = connection.accept_bi().await.unwrap();
            receive.read_to_end(1_000).await.unwrap();
            send.write_all(&answer_of(&Event::parse(&forged).unwrap())).await.unwrap();
            send.finish().unwrap();
            send.stopped().await.unwrap();
        }
    };
    let at = liar.bound_sockets().into_iter().find(SocketAddr::is_ipv4).unwrap();
    let at = SocketAddr::new([127, 0, 0, 1].into(), at.port());
    let peers = vec![honest.address(), format!("{}@{at}", liar.id())];
    let a = Gateway::start(DiscoveryConfig { peers, ..alone() }, &[name("other")]).await;

    let state = Arc::new(TopicState::new(topic.clone(), a.metrics.clone()));
    state.up(honest.gossip.id);
    // Joined for the pipeline alone: nothing but this test fetches.
    a.joined.insert(topic.clone());
    let puller = Puller {
        retell: Retell::off(state.clone()),
        state,
        reader: a.log.clone(),
        ingest: a.ingest.clone(),
        connections: Arc::new(Connections::new(a.gossip.net.clone()).0),
        trust: Arc::new(Trust::new(1 << 30, a.metrics.clone())),
        max_event_bytes: 100_000,
        metrics: a.metrics.clone(),
    };
    let (announced, queue) = mpsc::channel(1);
    let announcement = Announcement { peer: liar.id(), ids: vec![real.id] };
    announced.send(announcement).await.unwrap();
    let (tasks, wanted) = (Tasks::new(), [real.id]);
    tokio::select! {
        () = a.log.waits_for(&wanted, &topic) => {}
        () = puller.run(queue, tasks.token().clone()) => panic!("the queue is open"),
        () = lies => {}
    }
    let text = a.metrics.render();
    assert!(text.contains(r#"fetches_total{cause="failed"} 1"#), "the liar was asked: {text}");
    a.stop().await;
    honest.stop().await;
    liar.close().await;
}
