//! Runs models without a server: on one image at a time ([`Classifier`]), or on a folder of images to measure the
//! accuracy ([`evaluate`]).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use parking_lot::Mutex;
use serde::Serialize;

use crate::batch::ModelFailure;
use crate::cores::Cores;
use crate::model::LoadedModel;
use crate::preprocess::{ImageError, ImageInfo, PoolConfig, Preprocessor, Transform};
use crate::runtime::{Backend, PreparedGraph, Runtime, RuntimeError, Session, SessionSpec};
use crate::service::{Prediction, PredictionOptions, predict, top};
use ghostserve_manifest::Label;

/// Images in one run of the model.
const BATCH: usize = 4;
/// The second accuracy is that of the `TOP_K` most probable classes.
const TOP_K: usize = 5;

/// A model with a session, for use on one thread.
pub struct Classifier<'a> {
    model: &'a LoadedModel,
    session: Session,
    transform: Arc<Transform>,
    preprocessor: Preprocessor,
}

/// Why an image could not be classified, or a folder could not be evaluated.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// The image cannot be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] ModelFailure),
    /// The runtime does not accept the model.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The folder cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A folder whose name is no class of the model.
    #[error(
        "{path} holds a folder `{found}`, which is no class of the model; folders are named by label or WordNet id, \
         such as {expected}"
    )]
    UnknownClass {
        /// The folder that holds the class folders.
        path: PathBuf,
        /// The name that is no class.
        found: String,
        /// Some names of classes.
        expected: String,
    },
    /// A folder without class folders that hold images.
    #[error("{0} holds no images: expected one folder a class with images in it")]
    Empty(PathBuf),
    /// A folder without images.
    #[error("{0} holds no file that ends like an image (jpg, png, webp, gif, bmp, tiff)")]
    NoImages(PathBuf),
}

fn session_spec(model: &LoadedModel, backend: Backend) -> SessionSpec {
    let (input, classes) = (model.manifest.input.crop, model.labels.len());
    SessionSpec { input, classes, max_batch: BATCH, threads: 1, backend }
}

impl<'a> Classifier<'a> {
    /// Loads `model` into the runtime, on the given backend.
    ///
    /// # Errors
    /// The runtime does not accept the model.
    pub fn new(model: &'a LoadedModel, runtime: &Runtime, backend: Backend) -> Result<Self, RuntimeError> {
        let spec = session_spec(model, backend);
        Self::with_graph(model, runtime, &runtime.prepare_for(model, spec)?, spec)
    }

    fn with_graph(
        model: &'a LoadedModel,
        runtime: &Runtime,
        graph: &PreparedGraph,
        spec: SessionSpec,
    ) -> Result<Self, RuntimeError> {
        Ok(Self {
            session: runtime.session(graph, spec)?,
            transform: Arc::new(Transform::new(model.manifest.input)),
            preprocessor: Preprocessor::new(PoolConfig::default(), Cores::new(1)),
            model,
        })
    }

    /// Classifies one image file.
    ///
    /// # Errors
    /// The image cannot be used, or the model fails.
    pub fn classify(&mut self, file: &[u8], top_k: usize) -> Result<(ImageInfo, Vec<Prediction>), EvalError> {
        let (info, scores) = self.run(file)?;
        let options = PredictionOptions { top_k, min_confidence: 0.0 };
        let predictions = predict(scores, self.model.manifest.network.output, &self.model.labels, options);
        Ok((info, predictions))
    }

    /// The network's row of scores for one image file, one a class, as the manifest's `output` says.
    ///
    /// # Errors
    /// The image cannot be used, or the model fails.
    pub fn scores(&mut self, file: &[u8]) -> Result<Vec<f32>, EvalError> {
        Ok(self.run(file)?.1)
    }

    fn run(&mut self, file: &[u8]) -> Result<(ImageInfo, Vec<f32>), EvalError> {
        let prepared = self.preprocessor.run_sync(&self.transform, file)?;
        let scores = self.session.run_rows(&[&prepared.crop])?.concat();
        Ok((prepared.info, scores))
    }
}

/// The files of a folder.
#[derive(Debug, Default)]
pub struct FolderFiles {
    /// Files whose names end like an image, sorted by path.
    pub images: Vec<PathBuf>,
    /// Files whose names do not.
    pub others: Vec<PathBuf>,
}

/// Lists the files of a folder and of the folders in it, without those whose names begin with a dot.
///
/// # Errors
/// A folder cannot be read, or there is no image.
pub fn image_files(folder: &Path) -> Result<FolderFiles, EvalError> {
    let mut files = FolderFiles::default();
    collect_files(folder, &mut files)?;
    if files.images.is_empty() { Err(EvalError::NoImages(folder.to_owned())) } else { Ok(files) }
}

fn collect_files(folder: &Path, files: &mut FolderFiles) -> Result<(), EvalError> {
    for path in list(folder)?.into_iter().filter(|path| !is_hidden(path)) {
        // A link to a folder may lead back to where it is.
        if path.is_dir() && !path.is_symlink() {
            collect_files(&path, files)?;
        } else if path.is_file() {
            let list = if ends_like_an_image(&path) { &mut files.images } else { &mut files.others };
            list.push(path);
        }
    }
    Ok(())
}

/// Extensions of image files, in lower case.
const EXTENSIONS: [&str; 9] = ["jpg", "jpeg", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff"];

fn ends_like_an_image(path: &Path) -> bool {
    path.extension().is_some_and(|extension| EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known)))
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// Image files with their classes.
#[derive(Debug)]
pub struct Samples {
    files: Vec<(PathBuf, usize)>,
    left_out: Vec<PathBuf>,
}

impl Samples {
    /// Lists the files of an image folder, `folder/<label or wnid>/<file>`. Leaves out files beside the class folders,
    /// folders inside them, folders without images whose names are no class, and names that begin with a dot.
    ///
    /// # Errors
    /// The folder cannot be read, holds no files, or holds a folder with images whose name is no class of the model.
    pub fn find(folder: &Path, labels: &[Label]) -> Result<Self, EvalError> {
        let (mut files, mut left_out) = (Vec::new(), Vec::new());
        for class_folder in list(folder)? {
            if !class_folder.is_dir() || is_hidden(&class_folder) {
                left_out.push(class_folder);
                continue;
            }
            let name = class_folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let matches = |label: &Label| label.name == name || label.wnid.as_ref() == Some(&name);
            let Some(class) = labels.iter().position(matches) else {
                if let Err(EvalError::NoImages(_)) = image_files(&class_folder) {
                    left_out.push(class_folder);
                    continue;
                }
                let expected = labels.iter().take(3).map(|l| format!("`{}`", l.name)).collect::<Vec<_>>().join(", ");
                return Err(EvalError::UnknownClass { path: folder.to_owned(), found: name, expected });
            };
            for path in list(&class_folder)? {
                // Some data sets have no endings, so only another ending than an image's is a stray file.
                let may_be_image = path.extension().is_none() || ends_like_an_image(&path);
                let is_sample = path.is_file() && !is_hidden(&path) && may_be_image;
                if is_sample { files.push((path, class)) } else { left_out.push(path) }
            }
        }
        if files.is_empty() { Err(EvalError::Empty(folder.to_owned())) } else { Ok(Self { files, left_out }) }
    }

    /// Files and folders that are not evaluated, sorted by path.
    #[must_use]
    pub fn left_out(&self) -> &[PathBuf] {
        &self.left_out
    }

    /// Number of files.
    #[must_use]
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there are no files. [`Samples::find`] returns at least one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }
}

/// The entries of a folder, sorted by path.
fn list(folder: &Path) -> Result<Vec<PathBuf>, EvalError> {
    let error = |source| EvalError::Io { path: folder.to_owned(), source };
    let entries = fs::read_dir(folder).map_err(error)?;
    let mut paths: Vec<_> = entries.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>().map_err(error)?;
    paths.sort();
    Ok(paths)
}

/// A model's accuracy.
#[derive(Clone, Debug, Serialize)]
pub struct EvalReport {
    /// Counts over all images that could be read.
    pub all: Tally,
    /// Counts for each class, in the order of the outputs.
    pub classes: Vec<Tally>,
    /// Images that could not be read. The counts do not include them.
    pub failed: Vec<EvalFailure>,
}

/// Correct predictions among some images.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// The class, or `all`.
    pub label: String,
    /// Number of images.
    pub images: usize,
    /// Images whose class was the most probable.
    pub top1: usize,
    /// Images whose class was among the five most probable.
    pub top5: usize,
}

fn lossy_path<S: serde::Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// An image that could not be read.
#[derive(Clone, Debug, Serialize)]
pub struct EvalFailure {
    /// The image file. A name that is not UTF-8 is written with replacement characters.
    #[serde(serialize_with = "lossy_path")]
    pub file: PathBuf,
    /// Why it could not be read.
    pub error: String,
}

impl Tally {
    /// Share of images whose class was the most probable, percent.
    #[must_use]
    pub fn top1_percent(&self) -> f64 {
        100.0 * self.top1 as f64 / self.images.max(1) as f64
    }

    /// Share of images whose class was among the five most probable, percent.
    #[must_use]
    pub fn top5_percent(&self) -> f64 {
        100.0 * self.top5 as f64 / self.images.max(1) as f64
    }

    fn count(&mut self, rank: Option<usize>) {
        self.images += 1;
        self.top1 += usize::from(rank == Some(0));
        self.top5 += usize::from(rank.is_some());
    }
}

/// Runs `model` on `samples` on several threads, each with its own session. Calls `progress` for every image.
///
/// # Errors
/// The runtime does not accept the model, or fails. Images that cannot be read become part of the report.
pub fn evaluate(
    model: &LoadedModel,
    samples: &Samples,
    runtime: &Runtime,
    backend: Backend,
    threads: usize,
    progress: &(dyn Fn() + Sync),
) -> Result<EvalReport, EvalError> {
    let tally = |label: &str| Tally { label: label.to_owned(), ..Tally::default() };
    let report = Mutex::new(EvalReport {
        all: tally("all"),
        classes: model.labels.iter().map(|label| tally(&label.name)).collect(),
        failed: Vec::new(),
    });
    let next = AtomicUsize::new(0);
    // Prepared once for all threads, because checking a graph and comparing backends take time.
    let spec = session_spec(model, backend);
    let graph = runtime.prepare_for(model, spec)?;
    let work = || -> Result<(), EvalError> {
        let mut classifier = Classifier::with_graph(model, runtime, &graph, spec)?;
        loop {
            let start = next.fetch_add(BATCH, Ordering::Relaxed);
            let Some(batch) = samples.files.get(start..samples.len().min(start + BATCH)).filter(|b| !b.is_empty())
            else {
                return Ok(());
            };
            let (mut rows, mut classes, mut failed) = (Vec::new(), Vec::new(), Vec::new());
            for (file, class) in batch {
                let bytes = fs::read(file).map_err(|e| e.to_string());
                let row = bytes.and_then(|bytes| {
                    let preprocessor = &classifier.preprocessor;
                    preprocessor.run_sync(&classifier.transform, &bytes).map_err(|e| e.to_string())
                });
                match row {
                    Ok(prepared) => {
                        rows.push(prepared.crop);
                        classes.push(*class);
                    }
                    Err(error) => failed.push(EvalFailure { file: file.clone(), error }),
                }
                progress();
            }
            let scores = classifier.session.run_rows(&rows)?;

            let mut report = report.lock();
            for (class, scores) in classes.into_iter().zip(scores) {
                let rank = top(&scores, TOP_K, f32::NEG_INFINITY).into_iter().position(|found| found == class);
                report.all.count(rank);
                report.classes[class].count(rank);
            }
            report.failed.append(&mut failed);
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|p| std::panic::resume_unwind(p)))
    })?;
    let mut report = report.into_inner();
    report.failed.sort_by(|a, b| a.file.cmp(&b.file));
    Ok(report)
}
