//! Saying from time to time that we are still fetching.

use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// How often we say that we are still at it.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Waits for the end of a pull, which goes on while something is being said: a peer that does not take
/// our words must not keep the events under way and the ids that we claimed. What is begun is said to
/// its end, for it is a frame.
///
/// # Errors
/// The first of either.
pub async fn while_saying<S, T, E>(
    pull: impl Future<Output = Result<T, E>>,
    talk: &mut S,
    mut say: impl for<'a> FnMut(&'a mut S) -> BoxFuture<'a, Result<(), E>>,
) -> Result<T, E> {
    let over = CancellationToken::new();
    let pulling = async {
        let pulled = pull.await?;
        over.cancel();
        Ok(pulled)
    };
    let saying = async {
        while over.run_until_cancelled(sleep(KEEP_ALIVE)).await.is_some() {
            say(talk).await?;
        }
        Ok(())
    };
    let (pulled, ()) = tokio::try_join!(pulling, saying)?;
    Ok(pulled)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures_util::FutureExt;
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pull_goes_on_while_the_peer_does_not_take_our_words() {
        let (begin, ended) = (Instant::now(), Cell::new(None));
        let pull = async {
            sleep(2 * KEEP_ALIVE).await;
            ended.set(Some(begin.elapsed()));
            Ok::<_, ()>("pulled")
        };
        let mut said = 0;
        fn slowly(said: &mut usize) -> BoxFuture<'_, Result<(), ()>> {
            *said += 1;
            sleep(6 * KEEP_ALIVE).map(Ok).boxed()
        }
        assert_eq!(while_saying(pull, &mut said, slowly).await, Ok("pulled"));
        assert!(ended.get().unwrap() < 3 * KEEP_ALIVE);
        assert_eq!((said, begin.elapsed() / 7 >= KEEP_ALIVE), (1, true), "one whole frame");
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_said_again_and_again_and_ends_with_the_pull_or_the_connection() {
        let pull =
            |parts: u32| sleep(KEEP_ALIVE * parts + KEEP_ALIVE / 2).map(|()| Ok::<_, u32>(()));
        fn say(said: &mut u32) -> BoxFuture<'_, Result<(), u32>> {
            *said += 1;
            std::future::ready(if *said > 3 { Err(*said) } else { Ok(()) }).boxed()
        }
        let mut said = 0;
        assert_eq!(while_saying(pull(3), &mut said, say).await, Ok(()));
        assert_eq!(said, 3);
        assert_eq!(while_saying(pull(3), &mut said, say).await, Err(4));
        assert_eq!(while_saying(std::future::ready(Err(9)), &mut said, say).await, Err::<(), _>(9));
    }
}
