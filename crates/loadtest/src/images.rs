//! The images that requests carry, read into memory once.

use std::path::{Path, PathBuf};

use super::{LoadTestError, sample_image};

/// Largest total size of the images in memory, bytes.
const MAX_BYTES: usize = 1 << 30;

/// Extensions of image files, in lower case.
const EXTENSIONS: [&str; 9] = ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "jfif"];

/// Images in memory. Requests use them in turn.
#[derive(Clone, Debug)]
pub struct ImageSet {
    files: Vec<ImageFile>,
    built_in: bool,
}

/// An image file in memory.
#[derive(Clone, Debug)]
pub(super) struct ImageFile {
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
}

impl ImageSet {
    /// The built-in image: one small PNG file, the same on every machine.
    #[must_use]
    pub fn built_in() -> Self {
        Self { files: vec![ImageFile { name: "built-in.png".to_owned(), bytes: sample_image::png() }], built_in: true }
    }

    /// Reads files and folders. A file is taken as it is; of a folder and its subfolders, the files with an image
    /// extension are taken, sorted by path.
    ///
    /// # Errors
    /// A path cannot be read, a folder contains no images, or the images exceed the memory limit of 1 GiB.
    pub fn read(paths: &[PathBuf]) -> Result<Self, LoadTestError> {
        let mut found = Vec::new();
        for path in paths {
            if path.is_dir() {
                let before = found.len();
                collect_images(path, &mut found)?;
                if found.len() == before {
                    return Err(LoadTestError::NoImages(path.clone()));
                }
                // The file system decides the order of a folder's entries; requests need a reproducible order.
                found[before..].sort();
            } else {
                found.push(path.clone());
            }
        }
        let mut files = Vec::with_capacity(found.len());
        let mut total = 0;
        for path in found {
            let bytes = std::fs::read(&path).map_err(|source| LoadTestError::File { path: path.clone(), source })?;
            total += bytes.len();
            if total > MAX_BYTES {
                return Err(LoadTestError::TooManyBytes(MAX_BYTES));
            }
            let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
            files.push(ImageFile { name, bytes });
        }
        Ok(Self { files, built_in: false })
    }

    /// The files, in the order in which they are sent.
    pub(super) fn files(&self) -> &[ImageFile] {
        &self.files
    }

    /// Number of images and their mean size, for people: `12 images, 108.4 kB on average`.
    #[must_use]
    pub fn description(&self) -> String {
        let total: usize = self.files.iter().map(|file| file.bytes.len()).sum();
        let mean = total as f64 / self.files.len().max(1) as f64 / 1000.0;
        match self.files.len() {
            1 if self.built_in => format!("the built-in image, {mean:.1} kB"),
            1 => format!("1 image, {mean:.1} kB"),
            n => format!("{n} images, {mean:.1} kB on average"),
        }
    }
}

impl ImageFile {
    /// Content type according to the first bytes, as servers detect it.
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

/// Appends the image files in `folder` and its subfolders to `found`.
fn collect_images(folder: &Path, found: &mut Vec<PathBuf>) -> Result<(), LoadTestError> {
    let unreadable = |source| LoadTestError::File { path: folder.to_owned(), source };
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let path = entry.path();
        let file_type = entry.file_type().map_err(unreadable)?;
        let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
        if file_type.is_dir() {
            collect_images(&path, found)?;
        } else if extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str())) {
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
    fn a_folder_yields_its_sorted_images_and_a_file_is_taken_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir(path("cat")).unwrap();
        for (name, bytes) in [("z.JPG", "\u{0}"), ("cat/a.png", "\u{0}"), ("notes.txt", "no"), ("b.gif", "GIF89a")] {
            std::fs::write(path(name), bytes).unwrap();
        }
        let images = ImageSet::read(&[path(""), path("notes.txt")]).unwrap();
        let names: Vec<_> = images.files().iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names, ["b.gif", "a.png", "z.JPG", "notes.txt"]);
        assert_eq!(images.files()[0].content_type(), "image/gif");
        assert_eq!(images.files()[3].content_type(), "application/octet-stream");

        std::fs::create_dir(path("empty")).unwrap();
        assert!(matches!(ImageSet::read(&[path("empty")]), Err(LoadTestError::NoImages(_))));
        assert!(matches!(ImageSet::read(&[path("missing.jpg")]), Err(LoadTestError::File { .. })));
    }
}
