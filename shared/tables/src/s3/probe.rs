//! Whether a store refuses to create an object that exists. Delta tables are safe only on such a store. Must not know tables.

use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, Result};

/// What a store does with a conditional put.
#[derive(Debug)]
pub(crate) enum ConditionalPuts {
    /// Refuses to replace an object.
    Work,
    /// Replaces the object all the same.
    Ignored,
    /// Does not accept them.
    Rejected(Error),
}

/// Writes an object in `folder`, and tries to create it again. It stays there: several processes may do this at once.
///
/// # Errors
/// When the store does not accept ordinary puts either.
pub(crate) async fn conditional_puts(store: &dyn ObjectStore, folder: &Path) -> Result<ConditionalPuts> {
    let location = folder.clone().join("conditional-writes");
    store.put(&location, "first".into()).await?;
    Ok(match store.put_opts(&location, "second".into(), PutMode::Create.into()).await {
        Ok(_) => ConditionalPuts::Ignored,
        Err(Error::AlreadyExists { .. }) => ConditionalPuts::Work,
        Err(error) => ConditionalPuts::Rejected(error),
    })
}
