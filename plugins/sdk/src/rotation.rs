//! Rotation policies: when a private topic gets a new secret, and who is left out.

#[doc(hidden)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "secret-rotation",
        additional_derives: [Clone, PartialEq],
        pub_export_macro: true,
        export_macro_name: "export_rotation",
        default_bindings_module: "nostr_gateway_plugin::rotation::bindings",
        with: {
            "nostr-gateway:plugin/log@0.1.0": crate::bindings::nostr_gateway::plugin::log,
            "nostr-gateway:plugin/config@0.1.0": crate::bindings::nostr_gateway::plugin::config,
        },
    });
}

#[doc(inline)]
pub use bindings::exports::nostr_gateway::plugin::rotation::{Decision, Member, Plan, Topic};

/// A rotation policy.
pub trait SecretRotation: Sized + 'static {
    /// Reads the configuration and gets ready.
    ///
    /// # Errors
    /// The text tells the operator what is wrong. The plugin then does not run.
    fn init() -> Result<Self, String>;

    /// Decides about one topic. Memory kept between calls is a cache.
    fn decide(&mut self, topic: Topic) -> Decision;
}

/// Exports a type that implements [`SecretRotation`] as the component's policy. Once per crate.
///
/// It also writes the message of a panic to the gateway's log, so the manifest must list the
/// capability `log`.
#[macro_export]
macro_rules! export_secret_rotation {
    ($policy:ty) => {
        #[cfg(not(target_family = "wasm"))]
        const _: fn() -> Result<$policy, String> =
            <$policy as $crate::rotation::SecretRotation>::init;

        #[cfg(target_family = "wasm")]
        const _: () = {
            use $crate::{
                __private::{Exported, RotationGuest},
                rotation::{Decision, SecretRotation, Topic},
            };

            thread_local! {
                static POLICY: Exported<$policy> = const { Exported::new() };
            }

            struct Component;

            impl RotationGuest for Component {
                fn init() -> Result<(), String> {
                    POLICY.with(|policy| policy.init(<$policy as SecretRotation>::init))
                }

                fn decide(topic: Topic) -> Decision {
                    POLICY.with(|policy| policy.call(|policy| policy.decide(topic)))
                }
            }

            $crate::rotation::bindings::export_rotation!(Component with_types_in $crate::rotation::bindings);
        };
    };
}
