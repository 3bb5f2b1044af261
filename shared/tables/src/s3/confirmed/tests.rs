//! A store in memory whose answers are lost, late or cut.

use std::sync::Mutex;

use object_store::memory::InMemory;

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// It is not carried out.
    Lost,
    /// It is carried out, and its answer is lost.
    AnswerLost,
    /// Its answer is lost, and the client sends it again.
    SentTwice,
}

/// A store whose next requests have faults.
#[derive(Debug)]
struct Unsteady {
    inner: Arc<InMemory>,
    faults: Mutex<Vec<Fault>>,
}

impl Unsteady {
    fn store(faults: &[Fault]) -> (Arc<InMemory>, ConfirmedStore) {
        let inner = Arc::new(InMemory::new());
        let faults = Mutex::new(faults.iter().rev().copied().collect());
        let unsteady = Self { inner: Arc::clone(&inner), faults };
        (inner, ConfirmedStore::new(Arc::new(unsteady), PATIENCE))
    }

    fn fault(&self) -> Option<Fault> {
        self.faults.lock().unwrap().pop()
    }

    async fn request<T, F: Future<Output = Result<T>>>(&self, call: impl Fn() -> F) -> Result<T> {
        match self.fault() {
            None => call().await,
            Some(Fault::Lost) => Err(lost()),
            Some(Fault::AnswerLost) => {
                let _ = call().await;
                Err(lost())
            }
            Some(Fault::SentTwice) => {
                let _ = call().await;
                call().await
            }
        }
    }
}

fn lost() -> Error {
    Error::Generic { store: "test", source: "no answer".into() }
}

impl fmt::Display for Unsteady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Unsteady")
    }
}

#[async_trait]
impl ObjectStore for Unsteady {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.request(|| self.inner.put_opts(location, payload.clone(), options.clone())).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let upload = self.inner.put_multipart_opts(location, options).await?;
        Ok(Box::new(UnsteadyUpload { upload, fault: self.fault() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.request(|| self.inner.get_opts(location, options.clone())).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        match self.fault() {
            None => self.inner.delete_stream(locations),
            Some(_) => stream::iter([Err(lost())]).boxed(),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.fault() {
            None => self.inner.list(prefix),
            // Cut in the middle.
            Some(_) => self.inner.list(prefix).take(1).chain(stream::iter([Err(lost())])).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.request(|| self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[derive(Debug)]
struct UnsteadyUpload {
    upload: Box<dyn MultipartUpload>,
    fault: Option<Fault>,
}

#[async_trait]
impl MultipartUpload for UnsteadyUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.upload.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        match self.fault {
            None => self.upload.complete().await,
            Some(Fault::Lost) => Err(lost()),
            Some(_) => {
                self.upload.complete().await?;
                // As S3 answers when the upload no longer exists.
                Err(Error::NotFound { path: "upload".to_owned(), source: "no such upload".into() })
            }
        }
    }

    async fn abort(&mut self) -> Result<()> {
        self.upload.abort().await
    }
}

async fn create(store: &dyn ObjectStore, location: &Path, bytes: &'static str) -> Result<PutResult> {
    store.put_opts(location, bytes.into(), PutMode::Create.into()).await
}

#[tokio::test]
async fn a_conditional_put_whose_answer_is_lost_has_succeeded() {
    use Fault::{AnswerLost, Lost, SentTwice};
    for faults in [
        &[] as &[Fault],
        &[Lost],
        &[AnswerLost],
        &[SentTwice],
        // The reading that confirms it is lost too.
        &[AnswerLost, Lost, Lost, Lost],
        &[Lost, Lost, AnswerLost, Lost, SentTwice],
    ] {
        let (inner, store) = Unsteady::store(faults);
        let location = Path::from("entry");
        create(&store, &location, "mine").await.unwrap_or_else(|error| panic!("{faults:?}: {error}"));
        let stored = inner.get(&location).await.unwrap().bytes().await.unwrap();
        assert_eq!(stored, "mine", "{faults:?}");
        let second = create(&store, &location, "theirs").await;
        assert!(matches!(second, Err(Error::AlreadyExists { .. })), "{second:?}");
    }
}

#[tokio::test]
async fn a_conditional_put_that_came_second_is_refused() {
    use Fault::{AnswerLost, Lost, SentTwice};
    for faults in [&[] as &[Fault], &[Lost], &[AnswerLost], &[SentTwice], &[AnswerLost, Lost, Lost, Lost]] {
        let (inner, store) = Unsteady::store(faults);
        let location = Path::from("entry");
        create(inner.as_ref(), &location, "theirs").await.unwrap();
        let second = create(&store, &location, "mine").await;
        assert!(matches!(second, Err(Error::AlreadyExists { .. })), "{faults:?}: {second:?}");
        assert_eq!(inner.get(&location).await.unwrap().bytes().await.unwrap(), "theirs");
    }
}

#[tokio::test]
async fn a_store_that_stays_away_is_an_error() {
    let (_inner, store) = Unsteady::store(&[Fault::Lost; 100]);
    let error = create(&store, &Path::from("entry"), "mine").await.unwrap_err();
    assert!(matches!(error, Error::Generic { .. }), "{error}");
    assert!(store.head(&Path::from("entry")).await.is_err());
}

#[tokio::test]
async fn cut_listings_and_removals_are_asked_again() {
    let (inner, store) = Unsteady::store(&[Fault::Lost, Fault::Lost]);
    for name in ["a", "b", "c"] {
        inner.put(&Path::from(name), name.into()).await.unwrap();
    }
    let found: Vec<ObjectMeta> = store.list(None).try_collect().await.unwrap();
    let found: Vec<String> = found.into_iter().map(|object| object.location.to_string()).collect();
    assert_eq!(found, ["a", "b", "c"]);
    let (inner, store) = Unsteady::store(&[Fault::Lost, Fault::Lost]);
    for name in ["a", "b"] {
        inner.put(&Path::from(name), name.into()).await.unwrap();
    }
    let locations = stream::iter([Ok(Path::from("a"))]).boxed();
    let removed: Vec<Path> = store.delete_stream(locations).try_collect().await.unwrap();
    assert_eq!((removed, inner.list(None).count().await), (vec![Path::from("a")], 1));
}

#[tokio::test]
async fn a_completion_whose_answer_is_lost_has_succeeded() {
    for (fault, succeeds) in [(None, true), (Some(Fault::AnswerLost), true), (Some(Fault::Lost), false)] {
        let (inner, store) = Unsteady::store(fault.as_slice());
        let location = Path::from("large");
        let mut upload = store.put_multipart(&location).await.unwrap();
        upload.put_part("first".into()).await.unwrap();
        upload.put_part("second".into()).await.unwrap();
        assert_eq!(upload.complete().await.is_ok(), succeeds, "{fault:?}");
        assert_eq!(inner.head(&location).await.is_ok(), succeeds, "{fault:?}");
    }
}
