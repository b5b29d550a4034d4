//! Recorded rotations, said again over the network: by a member, by one who was left out, and by
//! somebody who never was a member. None of it changes what a gateway knows, or whom it serves.

use std::time::Duration;

use nostr_gateway::protocol::private::{
    message::{Message, Position},
    roster::{Place, RosterHash},
};
use nostr_gateway_tests::{Gateway, eventually};
use serde_json::Value;

use crate::{
    alone,
    circles::{becomes, epoch, held, home, invite, joined, notes, publish, reaches_epoch, show},
    hostile_node::{Answer, Loot, Member, Node, Rotation, ask, asks_by_name, framed},
};

const SOON: Duration = Duration::from_secs(40);

/// All that a rotation could change: epochs, members, invites, and what is held.
async fn state(gateway: &Gateway) -> (Value, Vec<String>) {
    (show(gateway).await["private"].clone(), held(gateway).await)
}

async fn rotate(gateway: &Gateway, topic: &str, arguments: &[&str]) {
    let command = [&["topic", "rotate", topic, "--grace", "0s"], arguments].concat();
    gateway.command(&command).await.succeeded();
}

/// One who claims to have what everybody lacks is listened to.
fn far_ahead() -> Position {
    let place = Place { epoch: 99, revision: 0 };
    Position { place, hash: RosterHash([9; 32]), locator: Vec::new(), admission: None }
}

/// What a topic that there is not is answered with.
async fn unknown(member: &Member, gateway: &Gateway) -> Answer {
    let connection = member.node.connect(gateway).await;
    let nobody = Message::Hello { tag: [9; 16], admission: None };
    let answer = ask(&connection, &framed(&nobody), true).await;
    connection.close(0_u32.into(), b"");
    answer
}

/// Says rotations to a gateway as somebody who is no member: after a hello that names the topic, and
/// without one.
async fn says_from_outside(
    loot: &mut Loot,
    who: &str,
    outsider: &Member,
    gateway: &Gateway,
    rotations: &[&Rotation],
) {
    let nothing = unknown(outsider, gateway).await;
    let connection = outsider.node.connect(gateway).await;
    for (n, rotation) in rotations.iter().enumerate() {
        let answer = outsider.replays(&connection, far_ahead(), &rotation.0).await;
        assert_eq!(
            answer, nothing,
            "{who}, rotation {n}: it is not told that there is such a topic"
        );
        loot.take(format!("{who}, rotation {n}"), answer.0);
        let alone = ask(&connection, &rotation.0, true).await;
        loot.take(format!("{who}, rotation {n} by itself"), alone.0);
    }
    connection.close(0_u32.into(), b"");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_rotation_changes_nothing_and_yields_nothing() {
    let _alone = alone().await;
    let a = home(None).await;
    let text = invite(&a, false).await;
    let mut b = joined("B", None, &text).await;
    let mut all = notes(3, "before");
    publish(&a, &all).await;
    becomes(&b, &all).await;

    // Two members with code of their own record every rotation, until one of them is left out.
    let mut member = Member::invited(&text, &[&a, &b]).await;
    let mut former = Member::invited(&text, &[&a, &b]).await;
    member.meets(&a).await;
    former.meets(&a).await;
    let first = member.rotation();
    rotate(&a, "den", &[]).await;
    reaches_epoch(&b, 2).await;
    member.meets(&a).await;
    former.meets(&a).await;
    let (second, last_of_former) = (member.rotation(), former.rotation());
    former.is_served(&b, &all[0]).await;
    let left_out = former.node.endpoint.id().to_string();
    rotate(&a, "den", &["--exclude", &left_out]).await;
    reaches_epoch(&b, 3).await;
    member.meets(&a).await;
    let third = member.rotation();
    let secret = notes(2, "for those who are left");
    publish(&a, &secret).await;
    all.extend(secret.iter().cloned());
    becomes(&b, &all).await;
    assert_eq!([&first, &second, &third].map(Rotation::epoch), [1, 2, 3]);
    assert_eq!(last_of_former.epoch(), 2);
    // It knows all that the former member does, and never was one.
    let outsider = Member {
        node: Node::new(&[&a, &b]).await,
        epochs: former.epochs.clone(),
        recorded: Vec::new(),
    };

    // A rotation of another topic of the same gateway, with a higher number.
    a.command(&["topic", "create", "loft", "--private"]).await.succeeded();
    let made = a.command(&["topic", "invite", "loft"]).await;
    made.succeeded();
    let mut elsewhere = Member::invited(made.stdout.trim(), &[&a]).await;
    for _ in 0..4 {
        rotate(&a, "loft", &[]).await;
    }
    elsewhere.meets(&a).await;
    let of_another = elsewhere.rotation();
    assert_eq!(of_another.epoch(), 5);

    let mut loot = Loot::default();
    let old = [
        ("the first", &first),
        ("the second", &second),
        ("the newest", &third),
        ("of another topic", &of_another),
    ];
    for (name, gateway) in [("A", &a), ("B", &b)] {
        let before = state(gateway).await;
        assert_eq!(before.0["epoch"], 3);
        let unanswered = unknown(&member, gateway).await.1;
        let connection = member.node.connect(gateway).await;
        for (what, rotation) in old {
            // When the gateway waits for it, and when it waits for a proof.
            for (when, position) in [("ahead", far_ahead()), ("level", member.epochs.position())] {
                let (got, end) = member.replays(&connection, position, &rotation.0).await;
                assert_eq!(end, unanswered, "{what}, {when}, at {name}");
                loot.take(format!("member, {what}, {when}, at {name}"), got);
            }
        }
        connection.close(0_u32.into(), b"");
        let stolen = [&last_of_former, &third];
        for (who, outsider) in [("former member", &former), ("outsider", &outsider)] {
            let who = format!("{who} at {name}");
            says_from_outside(&mut loot, &who, outsider, gateway, &stolen).await;
            asks_by_name(&mut loot, &outsider.node, &who, gateway, &secret[0]).await;
        }
        assert_eq!(state(gateway).await, before, "{name}");
        member.is_served(gateway, &secret[0]).await;
    }

    // B is away for two rotations, and A when it comes back: now there is one that B lacks.
    b.kill9().await;
    rotate(&a, "den", &[]).await;
    rotate(&a, "den", &[]).await;
    member.meets(&a).await;
    let newest = member.rotation();
    assert_eq!((newest.epoch(), newest.decoded().unwrap().headers.len()), (5, 1));
    a.signal("STOP");
    let b = b.restart().await;
    let before = state(&b).await;
    assert_eq!(before.0["epoch"], 3);
    for (who, outsider) in [("former member", &former), ("outsider", &outsider)] {
        let who = format!("{who} at B, which is behind");
        says_from_outside(&mut loot, &who, outsider, &b, &[&last_of_former, &newest]).await;
    }
    let unanswered = unknown(&member, &b).await.1;
    let connection = member.node.connect(&b).await;
    let (mut tried, mut got) = (0, Vec::new());
    for changed in newest.changed() {
        let answer = member.replays(&connection, member.epochs.position(), &changed.0).await;
        assert_eq!(answer.1, unanswered, "change {tried}");
        got.extend(answer.0);
        tried += 1;
    }
    loot.take(format!("member, {tried} rotations with one byte changed"), got);
    assert!(tried > 300, "nearly every byte can be changed: {tried}");
    for (what, rotation) in old {
        let answer = member.replays(&connection, far_ahead(), &rotation.0).await;
        loot.take(format!("member, {what}, at B, which is behind"), answer.0);
    }
    // Rosters only ever go on: had one of all these been taken, it would be seen now.
    assert_eq!(state(&b).await, before);
    loot.is_nothing();

    // As it was recorded, and from a member, it is taken: the others differed by a byte.
    member.replays(&connection, member.epochs.position(), &newest.0).await;
    connection.close(0_u32.into(), b"");
    reaches_epoch(&b, 5).await;
    a.signal("CONT");
    let more = notes(2, "it goes on");
    publish(&b, &more).await;
    all.extend(more.iter().cloned());
    becomes(&a, &all).await;
    let mut loot = Loot::default();
    for (name, gateway) in [("A", &a), ("B", &b)] {
        member.is_served(gateway, &more[0]).await;
        says_from_outside(
            &mut loot,
            &format!("former member, at {name}"),
            &former,
            gateway,
            &[&newest],
        )
        .await;
        eventually("it still publishes in the newest epoch", SOON, async || {
            (epoch(gateway).await == 5).then_some(())
        })
        .await;
    }
    loot.is_nothing();
}
