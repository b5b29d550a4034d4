//! What stands at the beginning of every direct stream of a private topic (`docs/private-topics.md`,
//! "Direct streams"): who is it, who lacks what, and do both hold the secret.

use std::{sync::Arc, time::Duration};

use iroh::endpoint::{Connection, RecvStream, SendStream};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::circle::{Circle, CircleError, Circles};
use crate::protocol::private::{
    MemberId,
    epochs::{EpochId, Input, Output, Refusal},
    message::{Handover, MAX_HELLO_BYTES, MAX_MESSAGE_BYTES, Message, Position},
    proof::{Binding, EXPORTER_LABEL, Role},
};

/// How long all of it may take.
const TALK: Duration = Duration::from_secs(10);

/// The longest message that says no more than where a member is, in bytes.
const MAX_POSITION_BYTES: usize = 1_024;

/// Messages between the positions and the proof: a hand-over or admissions, and one more of them if
/// something changed meanwhile.
const MAX_BETWEEN: usize = 3;

/// Why a stream is not that of a private topic.
#[derive(Debug, thiserror::Error)]
pub enum TalkError {
    /// One answer for all reasons: no such topic, or not for this peer.
    #[error("unknown here, or there")]
    Unknown,
    #[error("malformed")]
    Malformed,
    #[error(transparent)]
    Refused(Refusal),
    /// Something changed on the way; another stream will find both at the same roster.
    #[error("the two are not at the same roster yet")]
    Apart,
    #[error("the other side does not hold the secret")]
    Proof,
    #[error("{0}")]
    Broken(String),
    #[error("it took too long")]
    Slow,
    #[error(transparent)]
    Circle(#[from] CircleError),
}

/// Opens a stream for a topic. When this returns, the other side is a member, and both are at the
/// same roster; what follows is an ordinary request.
///
/// # Errors
/// When the other side is no member, does not know us for one, or breaks off.
pub async fn call(
    circle: &Arc<Circle>,
    connection: &Connection,
) -> Result<(SendStream, RecvStream), TalkError> {
    let calling = async {
        let (mut send, mut receive) = connection.open_bi().await.map_err(broken)?;
        let role = Role::Initiator;
        let binding = binding(connection, circle.me(), role)?;
        let (tag, admission) = (circle.tag(&binding, role), circle.admission());
        let mut talk = Talk {
            circle,
            peer: binding.responder,
            binding,
            role,
            send: &mut send,
            receive: &mut receive,
        };
        talk.write(&Message::Hello { tag, admission }).await?;
        // Whoever resets the stream here knows no such topic, or not us.
        let Message::Welcome { tag, position } = talk.read(MAX_POSITION_BYTES).await? else {
            return Err(TalkError::Malformed);
        };
        if !circle.is_named_by(&talk.binding, Role::Responder, &tag) {
            return Err(TalkError::Unknown);
        }
        let wanted =
            circle.is_behind(&position) || circle.welcomes(talk.peer, position.admission.as_ref());
        if !wanted {
            return Err(TalkError::Unknown);
        }
        talk.write(&Message::Status(circle.position())).await?;
        talk.settle(position).await?;
        Ok((send, receive))
    };
    timeout(TALK, calling).await.unwrap_or(Err(TalkError::Slow))
}

/// Answers a stream whose first byte, a zero, was read. Returns the topic when the other side is a
/// member and both are at the same roster.
///
/// # Errors
/// All of them but [`TalkError::Malformed`] are to be answered as for a topic that is unknown.
pub async fn answer(
    circles: &Circles,
    connection: &Connection,
    send: &mut SendStream,
    receive: &mut RecvStream,
) -> Result<Arc<Circle>, TalkError> {
    let answering = async {
        let mut length = [0; 4];
        receive.read_exact(&mut length[1..]).await.map_err(broken)?;
        let hello = read_body(receive, length, MAX_HELLO_BYTES).await?;
        let Message::Hello { tag, admission } = hello else { return Err(TalkError::Malformed) };
        let role = Role::Responder;
        let binding = binding(connection, circles.me(), role)?;
        let circle = circles.find(&binding, &tag).ok_or(TalkError::Unknown)?;
        if !circle.welcomes(binding.initiator, admission.as_ref()) {
            return Err(TalkError::Unknown);
        }
        let (tag, position) = (circle.tag(&binding, role), circle.position());
        let mut talk =
            Talk { circle: &circle, peer: binding.initiator, binding, role, send, receive };
        talk.write(&Message::Welcome { tag, position }).await?;
        let Message::Status(position) = talk.read(MAX_POSITION_BYTES).await? else {
            return Err(TalkError::Malformed);
        };
        talk.settle(position).await?;
        Ok(circle)
    };
    timeout(TALK, answering).await.unwrap_or(Err(TalkError::Slow))
}

struct Talk<'a> {
    circle: &'a Arc<Circle>,
    peer: MemberId,
    binding: Binding,
    role: Role,
    send: &'a mut SendStream,
    receive: &'a mut RecvStream,
}

impl Talk<'_> {
    /// Brings both to the same roster and has both prove that they hold its secret.
    async fn settle(&mut self, theirs: Position) -> Result<(), TalkError> {
        let behind = self.circle.is_behind(&theirs);
        let met = Input::Met { peer: self.peer, position: theirs };
        let mut common = None;
        for output in self.circle.step(met).await? {
            match output {
                Output::HandOver { handover, .. } => {
                    common = Some(epoch(&handover));
                    self.write(&Message::Handover(handover)).await?;
                }
                Output::Tell { admissions, .. } => {
                    self.write(&Message::Admissions(admissions)).await?;
                }
                Output::Refused(refusal) => return Err(TalkError::Refused(refusal)),
                _ => {}
            }
        }
        if behind {
            common = Some(self.take_over().await?);
        }
        let newest = self.circle.publishes_in().ok_or(TalkError::Apart)?;
        if common.is_some_and(|common| common != newest) {
            return Err(TalkError::Apart);
        }
        self.prove(newest).await?;
        // It may have been left out meanwhile.
        match self.circle.is_member(self.peer) {
            true => {
                self.circle.saw([self.peer]);
                Ok(())
            }
            false => Err(TalkError::Unknown),
        }
    }

    /// Waits for what we lack. Returns the epoch that it leads to.
    async fn take_over(&mut self) -> Result<EpochId, TalkError> {
        let Message::Handover(handover) = self.read(MAX_MESSAGE_BYTES).await? else {
            return Err(TalkError::Malformed);
        };
        let epoch = epoch(&handover);
        let received = Input::Received { peer: self.peer, handover };
        for output in self.circle.step(received).await? {
            if let Output::Refused(refusal) = output {
                return Err(TalkError::Refused(refusal));
            }
        }
        Ok(epoch)
    }

    async fn prove(&mut self, epoch: EpochId) -> Result<(), TalkError> {
        let keys = self.circle.keys(epoch).ok_or(TalkError::Apart)?;
        let own = Message::Proof(self.binding.prove(&keys, epoch.number, self.role));
        let other = match self.role {
            Role::Initiator => Role::Responder,
            Role::Responder => Role::Initiator,
        };
        if self.role == Role::Initiator {
            self.write(&own).await?;
        }
        let proof = self.proof().await?;
        if !self.binding.verify(&keys, epoch.number, other, &proof) {
            return Err(TalkError::Proof);
        }
        if self.role == Role::Responder {
            self.write(&own).await?;
        }
        Ok(())
    }

    /// The other side's proof, and before it what it has to tell.
    async fn proof(&mut self) -> Result<[u8; 32], TalkError> {
        for _ in 0..MAX_BETWEEN {
            match self.read(MAX_MESSAGE_BYTES).await? {
                Message::Proof(proof) => return Ok(proof),
                Message::Admissions(admissions) => {
                    let told = Input::Told { peer: self.peer, admissions };
                    self.circle.step(told).await?;
                }
                // Something newer came to the other side in this moment.
                Message::Handover(handover) => {
                    let received = Input::Received { peer: self.peer, handover };
                    self.circle.step(received).await?;
                    return Err(TalkError::Apart);
                }
                _ => return Err(TalkError::Malformed),
            }
        }
        Err(TalkError::Malformed)
    }

    async fn write(&mut self, message: &Message) -> Result<(), TalkError> {
        let bytes = message.encode();
        let length = u32::try_from(bytes.len()).map_err(|_| TalkError::Malformed)?;
        self.send.write_all(&length.to_be_bytes()).await.map_err(broken)?;
        self.send.write_all(&bytes).await.map_err(broken)
    }

    async fn read(&mut self, max: usize) -> Result<Message, TalkError> {
        let mut length = [0; 4];
        self.receive.read_exact(&mut length).await.map_err(broken)?;
        read_body(self.receive, length, max).await
    }
}

fn broken(error: impl std::fmt::Display) -> TalkError {
    TalkError::Broken(error.to_string())
}

fn epoch(handover: &Handover) -> EpochId {
    let header = &handover.roster.header;
    EpochId { number: header.place.epoch, commitment: header.commitment }
}

/// The connection as both of its ends see it.
fn binding(connection: &Connection, me: MemberId, role: Role) -> Result<Binding, TalkError> {
    let mut material = Zeroizing::new([0; 32]);
    connection
        .export_keying_material(&mut *material, EXPORTER_LABEL, &[])
        .map_err(|_| TalkError::Broken("the connection exports no keying material".to_owned()))?;
    let peer = MemberId(*connection.remote_id().as_bytes());
    let (initiator, responder) = match role {
        Role::Initiator => (me, peer),
        Role::Responder => (peer, me),
    };
    Ok(Binding { material, initiator, responder })
}

async fn read_body(
    receive: &mut RecvStream,
    length: [u8; 4],
    max: usize,
) -> Result<Message, TalkError> {
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length == 0 || length > max {
        return Err(TalkError::Malformed);
    }
    let mut bytes = Zeroizing::new(vec![0; length]);
    receive.read_exact(&mut bytes).await.map_err(broken)?;
    Message::decode(&bytes).map_err(|_| TalkError::Malformed)
}
