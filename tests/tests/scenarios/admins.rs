//! One admin's key on two gateways that rotate without knowing of one another. The admin's gateways
//! are nodes of the test's own; the members between them are gateways.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use iroh::{
    endpoint::{Connection, RecvStream, SendStream},
    protocol::{AcceptError, ProtocolHandler},
};
use nostr_gateway::protocol::{
    TopicName,
    frame::SYNC_ALPN,
    private::{
        MemberId,
        epochs::{Command, Epochs, Input, Moment, Output},
        invite::Peer,
        message::{Message, Position},
        proof::{Binding, Role},
        roster::{RosterHash, Uses},
    },
};
use nostr_gateway_tests::{Gateway, events, eventually};
use nostr_sdk::Keys;

use crate::{
    alone,
    circles::{becomes, epoch, joined, notes, publish, reaches_epoch, show},
    hostile_node::{Member, Node, address, framed, keying_material, step},
};

const SOON: Duration = Duration::from_secs(40);

/// A member that others call, for as long as it has the topic.
#[derive(Clone, Default, Debug)]
struct Called(Arc<Mutex<Option<(MemberId, Epochs)>>>);

impl Called {
    fn with<T>(&self, what: impl FnOnce(&mut Epochs) -> T) -> Option<T> {
        self.0.lock().unwrap().as_mut().map(|(_, epochs)| what(epochs))
    }

    fn id(&self) -> Option<MemberId> {
        self.0.lock().unwrap().as_ref().map(|(id, _)| *id)
    }

    fn steps(&self, input: Input) -> Option<Vec<Output>> {
        self.with(|epochs| step(epochs, input))
    }

    /// An invite for many, which names this node and the gateways.
    async fn invites(&self, node: &Node, others: &[&Gateway]) -> String {
        let mut peers = vec![Peer { id: node.id(), addresses: node.endpoint.bound_sockets() }];
        for gateway in others {
            let address = address(gateway).await;
            let addresses: Vec<SocketAddr> = address.ip_addrs().copied().collect();
            peers.push(Peer { id: MemberId(*address.id.as_bytes()), addresses });
        }
        let invite = Input::Command(Command::Invite { uses: Uses::Many, peers });
        let outputs = self.steps(invite).unwrap();
        let invite = outputs.into_iter().find_map(|output| match output {
            Output::Invited(invite) => Some(invite),
            _ => None,
        });
        invite.unwrap().encode().to_string()
    }

    /// Answers one stream; nothing when it is for nobody here.
    async fn answer(
        &self,
        connection: &Connection,
        send: &mut SendStream,
        receive: &mut RecvStream,
    ) -> Option<()> {
        let peer = MemberId(*connection.remote_id().as_bytes());
        let Message::Hello { admission, .. } = hear(receive).await? else { return None };
        let material = keying_material(connection).into();
        let binding = Binding { material, initiator: peer, responder: self.id()? };
        let welcome = self.with(|epochs| {
            let tag = binding.tag(epochs.topic(), epochs.topic_key(), Role::Responder);
            let position = epochs.position();
            let welcome = epochs.welcomes(peer, admission.as_ref());
            welcome.then_some(Message::Welcome { tag, position })
        })?;
        say(send, &welcome?).await?;
        let Message::Status(position) = hear(receive).await? else { return None };
        for output in self.steps(Input::Met { peer, position })? {
            match output {
                Output::HandOver { handover, .. } => {
                    say(send, &Message::Handover(handover)).await?;
                }
                Output::Tell { admissions, .. } => {
                    say(send, &Message::Admissions(admissions)).await?;
                }
                _ => {}
            }
        }
        loop {
            match hear(receive).await? {
                Message::Admissions(admissions) => {
                    self.steps(Input::Told { peer, admissions })?;
                }
                Message::Proof(_) => break,
                _ => return None,
            }
        }
        let proof = self.with(|epochs| {
            let epoch = epochs.publishes_in().unwrap();
            let keys = epochs.keys(epoch).unwrap();
            binding.prove(&keys, epoch.number, Role::Responder)
        })?;
        say(send, &Message::Proof(proof)).await?;
        let _ = send.finish();
        Some(())
    }
}

impl ProtocolHandler for Called {
    async fn accept(&self, connection: Connection) -> Result<(), AcceptError> {
        while let Ok((mut send, mut receive)) = connection.accept_bi().await {
            self.answer(&connection, &mut send, &mut receive).await;
        }
        Ok(())
    }
}

async fn say(send: &mut SendStream, message: &Message) -> Option<()> {
    send.write_all(&framed(message)).await.ok()
}

async fn hear(receive: &mut RecvStream) -> Option<Message> {
    let mut length = [0; 4];
    receive.read_exact(&mut length).await.ok()?;
    let mut bytes = vec![0; u32::from_be_bytes(length) as usize];
    receive.read_exact(&mut bytes).await.ok()?;
    Message::decode(&bytes).ok()
}

/// Where a gateway says that it is; `None` when it does not know the member.
async fn position(member: &Member, gateway: &Gateway) -> Option<Position> {
    let connection = member.node.connect(gateway).await;
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    send.write_all(&member.greeting(&connection)).await.unwrap();
    let answer = hear(&mut receive).await;
    connection.close(0_u32.into(), b"");
    match answer? {
        Message::Welcome { position, .. } => Some(position),
        _ => None,
    }
}

/// Rotates without telling anybody, with a new roster whose hash is as it is wanted. Returns the hash.
fn rotates(
    member: &mut Member,
    exclude: &[MemberId],
    is_wanted: impl Fn(RosterHash) -> bool,
) -> RosterHash {
    let before = member.epochs.clone();
    // Each try has a secret of its own, and a hash that nobody knows before.
    for _ in 0..1_000 {
        let exclude = exclude.iter().copied().collect();
        let outputs = member.step(Input::Command(Command::Rotate { exclude, grace: 600 }));
        assert!(!outputs.iter().any(|output| matches!(output, Output::Refused(_))), "{outputs:?}");
        let hash = member.epochs.position().hash;
        if is_wanted(hash) {
            return hash;
        }
        member.epochs = before.clone();
    }
    panic!("no such rotation was found");
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_between_two_rotations_of_one_admin_agree_on_the_exclusion() {
    between_two_rotations(true).await;
}

/// The exclusion loses, and is made once more.
#[tokio::test(flavor = "multi_thread")]
async fn gateways_between_two_rotations_of_one_admin_agree_on_the_one_that_excludes_nobody() {
    between_two_rotations(false).await;
}

async fn between_two_rotations(exclusion_counts: bool) {
    let _alone = alone().await;
    let called = Called::default();
    let node = Node::with(&[], |router| router.accept(SYNC_ALPN, called.clone())).await;
    let mut random = || Keys::generate().secret_key().to_secret_bytes();
    let mut moment = Moment { now: events::now(), random: &mut random };
    let name = TopicName::new("den").unwrap();
    let (epochs, _) = Epochs::create(node.id(), name, &mut moment);
    *called.0.lock().unwrap() = Some((node.id(), epochs));
    let x = joined("X", None, &called.invites(&node, &[]).await).await;
    let text = called.invites(&node, &[&x]).await;
    let y = joined("Y", None, &text).await;
    y.wait_for_neighbors("den", 1, SOON).await;
    let (_, epochs) = called.0.lock().unwrap().take().unwrap();
    let mut one = Member { node, epochs, recorded: Vec::new() };

    // Two more members: one becomes the admin's other gateway, one is to be left out.
    let mut two = Member::invited(&text, &[]).await;
    let mut out = Member::invited(&text, &[]).await;
    two.meets(&x).await;
    out.meets(&x).await;
    one.meets(&x).await;
    rotates(&mut one, &[], |_| true);
    one.meets(&x).await;
    reaches_epoch(&y, 2).await;
    two.meets(&x).await;
    out.meets(&x).await;
    let key = Box::new(one.epochs.admin_key().unwrap().clone());
    two.step(Input::Command(Command::Administer(key)));
    assert_eq!(one.epochs.position().hash, two.epochs.position().hash);
    let mut all = notes(2, "before");
    publish(&x, &all).await;
    becomes(&y, &all).await;

    // Each rotates, and tells one gateway while the other one is not there.
    let middle = |hash: RosterHash| (0x40..0xc0).contains(&hash.0[0]);
    let first = rotates(&mut one, &[out.node.id()], middle);
    let second = rotates(&mut two, &[], |hash| (first < hash) == exclusion_counts);
    assert_ne!(first, second);
    y.signal("STOP");
    one.meets(&x).await;
    assert_eq!(epoch(&x).await, 3);
    let at_x = notes(2, "at X alone");
    publish(&x, &at_x).await;
    x.signal("STOP");
    y.signal("CONT");
    two.meets(&y).await;
    assert_eq!(epoch(&y).await, 3);
    assert_eq!(position(&two, &y).await.unwrap().hash, second);
    let at_y = notes(2, "at Y alone");
    publish(&y, &at_y).await;
    all.extend(at_x.into_iter().chain(at_y));
    x.signal("CONT");

    // The lower hash counts, and what was published in the epoch that lost is there too.
    let winner = if exclusion_counts { first } else { second };
    for gateway in [&x, &y] {
        eventually("the lower hash counts", SOON, async || {
            (position(&two, gateway).await?.hash == winner).then_some(())
        })
        .await;
        becomes(gateway, &all).await;
    }
    let loser = if exclusion_counts { &y } else { &x };
    assert_eq!(show(loser).await["private"]["reads"].as_array().unwrap().len(), 4);

    // Whoever was left out by the one that lost is left out all the same, once its admin hears.
    if !exclusion_counts {
        let gone = position(&one, &x).await.unwrap();
        assert!(one.epochs.is_behind(&gone));
        one.hears(&x).await;
        assert!(one.epochs.position().place.epoch > 3, "the exclusion is repeated");
        one.meets(&x).await;
    }
    let left_out = out.node.endpoint.id().to_string();
    for gateway in [&x, &y] {
        eventually("it is left out", SOON, async || {
            (!show(gateway).await["private"]["members"].to_string().contains(&left_out))
                .then_some(())
        })
        .await;
        assert!(position(&out, gateway).await.is_none(), "it is not answered");
    }
    two.hears(&x).await;
    let more = notes(2, "afterwards");
    publish(&y, &more).await;
    all.extend(more.iter().cloned());
    becomes(&x, &all).await;
    two.is_served(&x, &more[0]).await;
}
