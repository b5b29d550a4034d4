//! Asks a policy from time to time whether a private topic of ours is to get a new secret.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use super::{circle::Circle, tend};
use crate::{
    clock::unix_now,
    gossip::swarms::Swarms,
    pipeline::{RotationAnswer, RotationPolicy},
    protocol::private::{
        MemberId,
        epochs::{Command, Input, Output},
    },
    tasks,
};

/// Asks about every topic whose admin's key is here, until shutdown.
pub async fn ask_on_and_on(
    swarms: Arc<Swarms>,
    policy: Arc<dyn RotationPolicy>,
    pause: Duration,
    token: CancellationToken,
) {
    while token.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
        // Plugins come and go.
        if policy.is_empty() {
            continue;
        }
        for swarm in swarms.all() {
            let Some(circle) = swarm.state.circle().filter(|circle| circle.is_admin()) else {
                continue;
            };
            // A neighbor is there, whether or not it had anything to say.
            circle.saw(swarm.state.neighbors().iter().map(tend::member));
            // What was seen is to outlive a restart: members must not be left out because of one.
            if let Err(error) = circle.save().await {
                tracing::warn!(%error, "cannot save when members were seen");
            }
            ask(circle, &policy).await;
        }
    }
}

async fn ask(circle: &Arc<Circle>, policy: &Arc<dyn RotationPolicy>) {
    let Some(question) = circle.question(unix_now()) else { return };
    let members: BTreeMap<String, MemberId> =
        circle.others().into_iter().map(|member| (member.to_string(), member)).collect();
    let policy = policy.clone();
    let name = question.name.clone();
    let Ok(answer) = tasks::blocking(move || policy.decide(&question)).await else { return };
    let RotationAnswer::Rotate { grace, exclude } = answer else { return };
    let exclude: BTreeSet<_> = exclude.iter().filter_map(|id| members.get(id).copied()).collect();
    let left_out = exclude.len();
    match circle.step(Input::Command(Command::Rotate { exclude, grace })).await {
        Ok(outputs) => {
            for output in outputs {
                if let Output::Refused(refusal) = output {
                    tracing::warn!(topic = %name, %refusal, "a plugin's rotation is refused");
                    return;
                }
            }
            tracing::info!(topic = %name, left_out, grace, "a plugin gave a private topic a new secret");
        }
        Err(error) => tracing::warn!(topic = %name, %error, "cannot rotate as a plugin wants it"),
    }
}
