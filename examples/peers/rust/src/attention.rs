//! The attention: float64 inside, for float32 and float64.

use std::collections::BTreeMap;

/// A tensor, its numbers row by row; true is 1. `dtype` as the file has it: F32, F64, BOOL.
#[derive(Clone)]
pub struct Tensor {
    pub dtype: String,
    pub shape: Vec<usize>,
    pub x: Vec<f64>,
}

pub struct Problem {
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
    pub mask: Option<Tensor>,
    pub bias: Option<Tensor>,
    pub cotangent: Option<Tensor>, // the gradient of the output, where gradients are asked for
    pub causal: bool,
    pub scale: Option<f64>,
}

/// Batch, query heads, key heads, queries, keys, width, width of values.
struct Sizes {
    b: usize,
    h: usize,
    g: usize,
    i: usize,
    j: usize,
    d: usize,
    e: usize,
}

impl Tensor {
    fn zeros(dtype: &str, shape: &[usize]) -> Tensor {
        Tensor { dtype: dtype.to_string(), shape: shape.to_vec(), x: vec![0.0; shape.iter().product()] }
    }

    fn like(other: &Tensor) -> Tensor {
        Tensor::zeros(&other.dtype, &other.shape)
    }

    fn broadcasts(&self, full: &[usize]) -> bool {
        let fits = |(size, wanted): (&usize, &usize)| *size == 1 || size == wanted;
        self.shape.len() <= full.len() && self.shape.iter().rev().zip(full.iter().rev()).all(fits)
    }

    /// Where the number of an index is in a tensor that broadcasts.
    fn place(&self, index: &[usize]) -> usize {
        let own = &index[index.len() - self.shape.len()..];
        self.shape.iter().zip(own).fold(0, |place, (size, at)| place * size + if *size == 1 { 0 } else { *at })
    }
}

/// The sizes, or why they contradict each other: it is part of the test that this is seen.
fn sizes(p: &Problem) -> Result<Sizes, String> {
    let (q, k, v) = (&p.q.shape, &p.k.shape, &p.v.shape);
    if q.len() != 4 || !(3..=4).contains(&k.len()) || k.len() != v.len() {
        return Err(format!("q, k, v of shape {q:?}, {k:?}, {v:?}"));
    }
    let last = k.len() - 1;
    let (b, h, i, d, e, j) = (q[0], q[1], q[2], q[3], v[last], k[last - 1]);
    let g = if last == 2 { 1 } else { k[1] };
    if k[..last] != v[..last] || k[0] != b || k[last] != d {
        return Err(format!("q {q:?}, k {k:?} and v {v:?} do not fit"));
    }
    if if g == 0 { h > 0 } else { h % g > 0 } {
        return Err(format!("{h} query heads can't share {g} key heads"));
    }
    if p.q.dtype != p.k.dtype || p.q.dtype != p.v.dtype {
        return Err("q, k, v have several dtypes".to_string());
    }
    let (full, padding) = ([b, h, i, j], [b, j]);
    let fits = |x: &Tensor, full: &[usize]| match x.broadcasts(full) {
        true => Ok(()),
        false => Err(format!("{:?} does not broadcast to {full:?}", x.shape)),
    };
    if let Some(mask) = &p.mask {
        fits(mask, if mask.shape.len() == 2 { &padding[..] } else { &full })?;
    }
    if let Some(bias) = &p.bias {
        fits(bias, &full)?;
    }
    if p.cotangent.as_ref().is_some_and(|x| x.shape != [b, h, i, e]) {
        return Err("do has not the shape of the output".to_string());
    }
    Ok(Sizes { b, h, g, i, j, d, e })
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn add(to: &mut [f64], factor: f64, x: &[f64]) {
    for (to, x) in to.iter_mut().zip(x) {
        *to += factor * x;
    }
}

/// The output `o` and, where there is a cotangent, all gradients by name.
pub fn attend(p: &Problem) -> Result<BTreeMap<&'static str, Tensor>, String> {
    let n = sizes(p)?;
    let scale = p.scale.unwrap_or(1.0 / (n.d as f64).sqrt());
    let mut o = Tensor::zeros(&p.q.dtype, &[n.b, n.h, n.i, n.e]);
    let (mut dq, mut dk, mut dv) = (Tensor::like(&p.q), Tensor::like(&p.k), Tensor::like(&p.v));
    let mut dbias = p.bias.as_ref().map(Tensor::like);
    for row in 0..n.b * n.h * n.i {
        let (b, h, i) = (row / n.i / n.h, row / n.i % n.h, row % n.i);
        let keys = (b * n.g + h / (n.h / n.g)) * n.j;
        let q = &p.q.x[row * n.d..][..n.d];
        let k = |j: usize| &p.k.x[(keys + j) * n.d..][..n.d];
        let v = |j: usize| &p.v.x[(keys + j) * n.e..][..n.e];
        let hidden = |j: usize| {
            // The last query sees the last key (bottom_right): query i sees key j where j − J ≤ i − I.
            let masked = p.mask.as_ref().is_some_and(|mask| {
                let place = if mask.shape.len() == 2 { mask.place(&[b, j]) } else { mask.place(&[b, h, i, j]) };
                mask.x[place] == 0.0
            });
            masked || (p.causal && j + n.i > i + n.j)
        };
        let score = |j: usize| scale * dot(q, k(j)) + p.bias.as_ref().map_or(0.0, |bias| bias.x[bias.place(&[b, h, i, j])]);
        // A hidden key counts for nothing, even where its numbers are NaN; so does one whose bias is −∞.
        let visible: Vec<(usize, f64)> =
            (0..n.j).filter(|j| !hidden(*j)).map(|j| (j, score(j))).filter(|(_, s)| *s != f64::NEG_INFINITY).collect();
        let greatest = visible.iter().fold(f64::NEG_INFINITY, |most, (_, s)| most.max(*s));
        let weights: Vec<(usize, f64)> = visible.iter().map(|(j, s)| (*j, (s - greatest).exp())).collect();
        let sum: f64 = weights.iter().map(|(_, w)| w).sum();
        for (j, w) in &weights {
            add(&mut o.x[row * n.e..][..n.e], w / sum, v(*j)); // a query that sees no key keeps its zeros
        }
        let Some(cotangent) = &p.cotangent else { continue };
        let cotangent = &cotangent.x[row * n.e..][..n.e];
        let weights = weights.iter().filter(|(_, w)| *w != 0.0);
        let mean: f64 = weights.clone().map(|(j, w)| w / sum * dot(cotangent, v(*j))).sum();
        for (j, w) in weights {
            let ds = w / sum * (dot(cotangent, v(*j)) - mean);
            add(&mut dq.x[row * n.d..][..n.d], scale * ds, k(*j));
            add(&mut dk.x[(keys + j) * n.d..][..n.d], scale * ds, q);
            add(&mut dv.x[(keys + j) * n.e..][..n.e], w / sum, cotangent);
            if let Some(dbias) = &mut dbias {
                let place = dbias.place(&[b, h, i, *j]);
                dbias.x[place] += ds;
            }
        }
    }
    let mut outputs = BTreeMap::from([("o", o)]);
    if p.cotangent.is_some() {
        outputs.extend([("dq", dq), ("dk", dk), ("dv", dv)]);
        outputs.extend(dbias.map(|x| ("dbias", x)));
    }
    Ok(outputs)
}
