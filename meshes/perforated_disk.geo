// A disk with a ring of round holes, smaller cells near them:
// gmsh -2 perforated_disk.geo -setnumber radius 4 -setnumber holes 5 -setnumber h 0.15
SetFactory("OpenCASCADE");
DefineConstant[
  radius = {4.0, Name "Radius"},
  holes = {5, Min 1, Name "Number of holes"},
  ring = {2.0, Name "Distance of the holes from the centre"},
  hole = {0.6, Name "Radius of a hole"},
  h = {0.12, Name "Cell size at the holes"},
  grading = {3.0, Name "Largest cell size over that at the holes"}
];

Disk(1) = {0, 0, 0, radius};
For i In {0 : holes - 1}
  Disk(2 + i) = {ring * Cos(2 * Pi * i / holes), ring * Sin(2 * Pi * i / holes), 0, hole};
EndFor
domain() = BooleanDifference{ Surface{1}; Delete; }{ Surface{2 : 1 + holes}; Delete; };
edges() = Boundary{ Surface{domain()}; };

// The circle comes out as the curve that reaches the outer radius; the other ones are holes.
outer() = {};
inner() = {};
For i In {0 : #edges() - 1}
  box() = BoundingBox Curve{ Abs(edges(i)) };
  If (box(3) - box(0) > 1.9 * radius)
    outer() += Abs(edges(i));
  Else
    inner() += Abs(edges(i));
  EndIf
EndFor

Field[1] = Distance;
Field[1].CurvesList = {inner()};
Field[1].Sampling = 100;
Field[2] = Threshold;
Field[2].InField = 1;
Field[2].SizeMin = h;
Field[2].SizeMax = grading * h;
Field[2].DistMin = 0;
Field[2].DistMax = radius / 2;
Background Field = 2;
Mesh.MeshSizeExtendFromBoundary = 0;
Mesh.MeshSizeFromPoints = 0;
Mesh.Algorithm = 6;

Physical Curve("boundary", 1) = {outer()};
Physical Curve("holes", 2) = {inner()};
Physical Surface("domain", 1) = {domain()};
