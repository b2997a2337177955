//! What is sent: image files, read once.

use std::path::{Path, PathBuf};

use super::{LoadError, sample_image};

/// The most that is held in memory, bytes.
const MAX_BYTES: usize = 1 << 30;

/// How names of image files end.
const ENDINGS: [&str; 9] = ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "jfif"];

/// Images in memory, to be sent in turn.
#[derive(Clone, Debug)]
pub struct Images {
    files: Vec<ImageFile>,
    built_in: bool,
}

/// A file as it will be sent.
#[derive(Clone, Debug)]
pub(super) struct ImageFile {
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
}

impl Images {
    /// One small picture, the same everywhere.
    #[must_use]
    pub fn built_in() -> Self {
        Self { files: vec![ImageFile { name: "built-in.png".to_owned(), bytes: sample_image::png() }], built_in: true }
    }

    /// Files, whatever they are, and folders, of which everything that ends like an image is taken, subfolders included.
    pub fn read(paths: &[PathBuf]) -> Result<Self, LoadError> {
        let mut found = Vec::new();
        for path in paths {
            if path.is_dir() {
                let before = found.len();
                collect(path, &mut found)?;
                if found.len() == before {
                    return Err(LoadError::NoImages(path.clone()));
                }
                // The order of a folder is the file system's; the order of requests should not be.
                found[before..].sort();
            } else {
                found.push(path.clone());
            }
        }
        let mut files = Vec::with_capacity(found.len());
        let mut total = 0;
        for path in found {
            let bytes = std::fs::read(&path).map_err(|source| LoadError::File { path: path.clone(), source })?;
            total += bytes.len();
            if total > MAX_BYTES {
                return Err(LoadError::TooManyBytes(MAX_BYTES));
            }
            let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
            files.push(ImageFile { name, bytes });
        }
        Ok(Self { files, built_in: false })
    }

    /// In the order in which they are sent.
    pub(super) fn files(&self) -> &[ImageFile] {
        &self.files
    }

    /// How many, and how large on average: `12 images, 108.4 kB on average`.
    #[must_use]
    pub fn description(&self) -> String {
        let total: usize = self.files.iter().map(|file| file.bytes.len()).sum();
        let mean = total as f64 / self.files.len().max(1) as f64 / 1000.0;
        match self.files.len() {
            1 if self.built_in => format!("the built-in picture, {mean:.1} kB"),
            1 => format!("1 image, {mean:.1} kB"),
            n => format!("{n} images, {mean:.1} kB on average"),
        }
    }
}

impl ImageFile {
    /// By the first bytes, as servers decide.
    pub(super) fn content_type(&self) -> &'static str {
        match &self.bytes[..] {
            [0xFF, 0xD8, 0xFF, ..] => "image/jpeg",
            [0x89, b'P', b'N', b'G', ..] => "image/png",
            [b'G', b'I', b'F', b'8', ..] => "image/gif",
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "image/webp",
            [b'B', b'M', ..] => "image/bmp",
            [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => "image/tiff",
            _ => "application/octet-stream",
        }
    }
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) -> Result<(), LoadError> {
    let failed = |source| LoadError::File { path: folder.to_owned(), source };
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        let kind = entry.file_type().map_err(failed)?;
        let ending = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
        if kind.is_dir() {
            collect(&path, found)?;
        } else if ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str())) {
            found.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn folders_give_their_images_in_order_and_files_whatever_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir(path("cat")).unwrap();
        for (name, bytes) in [("z.JPG", "\u{0}"), ("cat/a.png", "\u{0}"), ("notes.txt", "no"), ("b.gif", "GIF89a")] {
            std::fs::write(path(name), bytes).unwrap();
        }
        let images = Images::read(&[path(""), path("notes.txt")]).unwrap();
        let names: Vec<_> = images.files().iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names, ["b.gif", "a.png", "z.JPG", "notes.txt"]);
        assert_eq!(images.files()[0].content_type(), "image/gif");
        assert_eq!(images.files()[3].content_type(), "application/octet-stream");

        std::fs::create_dir(path("empty")).unwrap();
        assert!(matches!(Images::read(&[path("empty")]), Err(LoadError::NoImages(_))));
        assert!(matches!(Images::read(&[path("missing.jpg")]), Err(LoadError::File { .. })));
    }
}
