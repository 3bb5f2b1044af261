//! A store over a network, where the answer to a request may be lost. Must not know tables.
//!
//! The client of S3 sends a request again when it gets no answer. A conditional put that was carried out and whose answer
//! was lost is then refused, since its own object exists: a commit that has succeeded would look like one that came too
//! late, and could be made a second time as the next version. So a refusal is confirmed: the object is read, and where it
//! has the bytes of the put, the put has succeeded. Callers put bytes that nobody else puts.
//!
//! What else that client does not send again is sent again here: listings and removals whose answer was cut, and requests
//! that took too long.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryFutureExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
    UploadPart,
};
use tracing::info;

use crate::real_time::Stopwatch;

/// How often a request is sent, each time with the client's own retries.
const ATTEMPTS: u32 = 5;
/// The pause after the first attempt; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// How many objects S3 removes with one request.
const REMOVED_AT_ONCE: usize = 1000;

/// A store whose answers are confirmed.
pub(super) struct ConfirmedStore {
    inner: Arc<dyn ObjectStore>,
    /// After this time a request is not sent again.
    patience: Duration,
}

/// What is stored at the location of a put.
enum Stored {
    Nothing,
    /// Its bytes.
    These(PutResult),
    /// Other bytes.
    Others,
}

impl ConfirmedStore {
    pub(super) fn new(inner: Arc<dyn ObjectStore>, patience: Duration) -> Self {
        Self { inner, patience }
    }

    /// Puts an object where there is none.
    async fn create(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let mut pauses = Pauses::new(self.patience);
        loop {
            let error = match self.inner.put_opts(location, payload.clone(), options.clone()).await {
                Ok(result) => return Ok(result),
                Err(error) if may_pass(&error) || matches!(error, Error::AlreadyExists { .. }) => error,
                Err(error) => return Err(error),
            };
            match self.stored(location, &payload).await {
                Ok(Stored::These(result)) => return Ok(result),
                Ok(Stored::Others) => {
                    return Err(Error::AlreadyExists { path: location.to_string(), source: error.into() });
                }
                // A put that is still in progress puts the same bytes.
                Ok(Stored::Nothing) | Err(_) => pauses.wait(error).await?,
            }
        }
    }

    async fn stored(&self, location: &Path, payload: &PutPayload) -> Result<Stored> {
        let found = match self.inner.get(location).await {
            Err(Error::NotFound { .. }) => return Ok(Stored::Nothing),
            found => found?,
        };
        let result = PutResult { e_tag: found.meta.e_tag.clone(), version: found.meta.version.clone() };
        let is_same = found.bytes().await? == Bytes::from(payload.clone());
        Ok(if is_same { Stored::These(result) } else { Stored::Others })
    }
}

/// The pauses between attempts.
struct Pauses {
    left: u32,
    next: Duration,
    since: Stopwatch,
    patience: Duration,
}

impl Pauses {
    fn new(patience: Duration) -> Self {
        Self { left: ATTEMPTS - 1, next: FIRST_PAUSE, since: Stopwatch::start(), patience }
    }

    /// Waits before the next attempt; the error of the last one if there is no next one.
    async fn wait(&mut self, error: Error) -> Result<()> {
        if self.left == 0 || self.since.elapsed() > self.patience {
            return Err(error);
        }
        info!(%error, "a request to the store failed; sending it again");
        tokio::time::sleep(self.next).await;
        self.left -= 1;
        self.next *= 2;
        Ok(())
    }
}

/// Calls until it succeeds, or fails for a reason that does not pass.
async fn repeated<T, F: Future<Output = Result<T>>>(
    patience: Duration,
    mut call: impl FnMut() -> F,
) -> Result<T> {
    let mut pauses = Pauses::new(patience);
    loop {
        match call().await {
            Err(error) if may_pass(&error) => pauses.wait(error).await?,
            result => return result,
        }
    }
}

/// Whether the next attempt may succeed: the answer was lost, cut, or an error of the server.
fn may_pass(error: &Error) -> bool {
    matches!(error, Error::Generic { .. })
}

/// Removes objects, and returns the result for each.
async fn remove(inner: &Arc<dyn ObjectStore>, locations: Vec<Path>) -> Result<Vec<Result<Path>>> {
    let locations = stream::iter(locations.into_iter().map(Ok)).boxed();
    let mut results: Vec<Result<Path>> = inner.delete_stream(locations).collect().await;
    match results.iter().position(|result| result.as_ref().is_err_and(may_pass)) {
        Some(failed) => results.swap_remove(failed).map(|_| Vec::new()),
        None => Ok(results),
    }
}

/// A listing as a stream, once it is complete.
fn listed(
    listing: impl Future<Output = Result<Vec<ObjectMeta>>> + Send + 'static,
) -> BoxStream<'static, Result<ObjectMeta>> {
    listing.map_ok(|found| stream::iter(found.into_iter().map(Ok))).try_flatten_stream().boxed()
}

#[async_trait]
impl ObjectStore for ConfirmedStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        match options.mode {
            PutMode::Create => self.create(location, payload, options).await,
            PutMode::Overwrite => {
                repeated(self.patience, || self.inner.put_opts(location, payload.clone(), options.clone()))
                    .await
            }
            PutMode::Update(_) => self.inner.put_opts(location, payload, options).await,
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let upload =
            repeated(self.patience, || self.inner.put_multipart_opts(location, options.clone())).await?;
        let (store, location) = (Arc::clone(&self.inner), location.clone());
        Ok(Box::new(ConfirmedUpload { upload, store, location, size: 0, patience: self.patience }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        repeated(self.patience, || self.inner.get_opts(location, options.clone())).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (inner, patience) = (Arc::clone(&self.inner), self.patience);
        locations
            .try_chunks(REMOVED_AT_ONCE)
            .map_err(|error| error.1)
            .and_then(move |locations| {
                let inner = Arc::clone(&inner);
                async move { repeated(patience, || remove(&inner, locations.clone())).await.map(stream::iter) }
            })
            .try_flatten()
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (inner, prefix, patience) = (Arc::clone(&self.inner), prefix.cloned(), self.patience);
        listed(async move { repeated(patience, || inner.list(prefix.as_ref()).try_collect()).await })
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let (inner, patience) = (Arc::clone(&self.inner), self.patience);
        let (prefix, offset) = (prefix.cloned(), offset.clone());
        listed(async move {
            repeated(patience, || inner.list_with_offset(prefix.as_ref(), &offset).try_collect()).await
        })
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        repeated(self.patience, || self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.inner.rename_opts(from, to, options).await
    }
}

/// Only the bucket: a client's options may have secrets.
impl fmt::Debug for ConfirmedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for ConfirmedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.inner, f)
    }
}

/// A large object in parts. The completion is confirmed, since the client sends it again when its answer is lost, and the
/// upload no longer exists then.
struct ConfirmedUpload {
    upload: Box<dyn MultipartUpload>,
    store: Arc<dyn ObjectStore>,
    location: Path,
    /// Bytes of all parts.
    size: u64,
    patience: Duration,
}

#[async_trait]
impl MultipartUpload for ConfirmedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.size += data.content_length() as u64;
        self.upload.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let error = match self.upload.complete().await {
            Ok(result) => return Ok(result),
            Err(error) => error,
        };
        match repeated(self.patience, || self.store.head(&self.location)).await {
            Ok(found) if found.size == self.size => {
                Ok(PutResult { e_tag: found.e_tag, version: found.version })
            }
            _ => Err(error),
        }
    }

    async fn abort(&mut self) -> Result<()> {
        self.upload.abort().await
    }
}

impl fmt::Debug for ConfirmedUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfirmedUpload").field("location", &self.location).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
