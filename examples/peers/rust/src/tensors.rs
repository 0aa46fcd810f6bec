//! Files of tensors: eight bytes with the length of a header, the header in JSON, the numbers; all little-endian.

use crate::attention::Tensor;
use crate::json::{parse, quoted};
use std::collections::BTreeMap;
use std::fs;

pub fn read(path: &str) -> Result<BTreeMap<String, Tensor>, String> {
    let file = fs::read(path).map_err(|error| error.to_string())?;
    let (length, rest) = file.split_at_checked(8).ok_or("a file without a header")?;
    let length = u64::from_le_bytes(length.try_into().expect("eight bytes")) as usize;
    let (header, numbers) = rest.split_at_checked(length).ok_or("a header that is cut off")?;
    let header = parse(&String::from_utf8_lossy(header))?;
    let mut found = BTreeMap::new();
    for (name, entry) in header.fields().iter().filter(|(name, _)| name != "__metadata__") {
        let dtype = entry.get("dtype").text();
        let shape: Vec<usize> = entry.get("shape").items().iter().map(|n| n.number() as usize).collect();
        let place: Vec<usize> = entry.get("data_offsets").items().iter().map(|n| n.number() as usize).collect();
        let bytes = numbers.get(place[0]..place[1]).ok_or(format!("{name} is cut off"))?;
        let x: Vec<f64> = match dtype {
            "F64" => bytes.chunks_exact(8).map(|x| f64::from_le_bytes(x.try_into().expect("eight bytes"))).collect(),
            "F32" => bytes.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().expect("four bytes")).into()).collect(),
            "BOOL" => bytes.iter().map(|x| f64::from(*x)).collect(),
            _ => return Err(format!("{name} of dtype {dtype}")),
        };
        if (dtype == "BOOL") != (name == "mask") {
            return Err(format!("{name} of dtype {dtype}"));
        }
        found.insert(name.clone(), Tensor { dtype: dtype.to_string(), shape, x });
    }
    Ok(found)
}

pub fn write(path: &str, tensors: &BTreeMap<&'static str, Tensor>) -> Result<(), String> {
    let (mut entries, mut numbers) = (Vec::new(), Vec::new());
    for (name, tensor) in tensors {
        let start = numbers.len();
        for x in &tensor.x {
            match tensor.dtype.as_str() {
                "F64" => numbers.extend(x.to_le_bytes()),
                _ => numbers.extend((*x as f32).to_le_bytes()),
            }
        }
        entries.push(format!(
            r#"{}:{{"dtype":{},"shape":{:?},"data_offsets":[{start},{}]}}"#,
            quoted(name),
            quoted(&tensor.dtype),
            tensor.shape,
            numbers.len()
        ));
    }
    let header = format!("{{{}}}", entries.join(","));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(numbers);
    fs::write(path, file).map_err(|error| error.to_string())
}
