//! From an [`EventFilter`](crate::EventFilter) to what the component exports.

/// Exports a type that implements [`EventFilter`](crate::EventFilter) as the component's filter.
/// Once per crate.
///
/// It also writes the message of a panic to the gateway's log, so the manifest must list the
/// capability `log`.
#[macro_export]
macro_rules! export_event_filter {
    ($filter:ty) => {
        // Other linkers do not take the names of a component's exports. Elsewhere, in tests, it is
        // enough that the type fits.
        #[cfg(not(target_family = "wasm"))]
        const _: fn() -> Result<$filter, String> = <$filter as $crate::EventFilter>::init;

        #[cfg(target_family = "wasm")]
        const _: () = {
            use $crate::__private::{Context, Event, Exported, Guest, Verdict};

            thread_local! {
                static FILTER: Exported<$filter> = const { Exported::new() };
            }

            struct Component;

            impl Guest for Component {
                fn init() -> Result<(), String> {
                    FILTER.with(Exported::init)
                }

                fn evaluate(event: Event, context: Context) -> Verdict {
                    FILTER.with(|filter| filter.evaluate(event, context))
                }
            }

    $crate::bindings::export!(Component with_types_in $crate::bindings);
        };
    };
}

#[doc(hidden)]
pub mod __private {
    use std::cell::RefCell;

    pub use crate::{
        Context, Event, Verdict, bindings::exports::nostr_gateway::plugin::filter::Guest,
    };

    /// Where the exported functions find the filter.
    pub struct Exported<F>(RefCell<Option<F>>);

    impl<F: crate::EventFilter> Exported<F> {
        #[expect(clippy::new_without_default, reason = "used in a constant only")]
        pub const fn new() -> Self {
            Self(RefCell::new(None))
        }

        pub fn init(&self) -> Result<(), String> {
            std::panic::set_hook(Box::new(|info| crate::log::error(&info.to_string())));
            *self.0.borrow_mut() = Some(F::init()?);
            Ok(())
        }

        pub fn evaluate(&self, event: Event, context: Context) -> Verdict {
            let mut filter = self.0.borrow_mut();
            let filter = filter.as_mut().expect("the host calls init first");
            filter.evaluate(event, context)
        }
    }
}
