//! Shutdown: one token that all parts watch, cancelled by Ctrl-C or SIGTERM.

use tokio_util::sync::CancellationToken;

/// Waits for Ctrl-C or SIGTERM, then cancels the token. Returns at once when the token is cancelled elsewhere.
pub async fn cancel_on_signal(token: CancellationToken) {
    let mut terminate = match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        Ok(terminate) => terminate,
        Err(error) => {
            tracing::error!(%error, "cannot listen for SIGTERM; only Ctrl-C stops the program cleanly");
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
