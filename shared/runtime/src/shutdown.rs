//! An orderly end: one token that everybody watches, cancelled by Ctrl-C or SIGTERM.

use tokio_util::sync::CancellationToken;

/// Waits for Ctrl-C or SIGTERM, then cancels the token; returns at once when somebody else has cancelled it.
pub async fn cancel_on_signal(token: CancellationToken) {
    let mut terminate = match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        Ok(terminate) => terminate,
        Err(error) => {
            tracing::error!(%error, "cannot listen for SIGTERM; only Ctrl-C ends the program in order");
            tokio::select! {
                _ = tokio::signal::ctrl_c() => token.cancel(),
                () = token.cancelled() => {}
            }
            return;
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
        () = token.cancelled() => {}
    }
    token.cancel();
}
