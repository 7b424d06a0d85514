// The disk of a radius around 0, cell size growing linearly from the centre to the circle:
// gmsh -2 disk.geo -setnumber radius 6 -setnumber h 0.2 -setnumber grading 3
SetFactory("OpenCASCADE");
DefineConstant[
  radius = {6.0, Name "Radius"},
  h = {0.2, Name "Cell size at the centre"},
  grading = {3.0, Name "Cell size at the circle over that at the centre"}
];

Disk(1) = {0, 0, 0, radius};

Field[1] = MathEval;
Field[1].F = Sprintf("%g + %g * sqrt(x^2 + y^2)", h, (grading - 1) * h / radius);
Background Field = 1;
Mesh.MeshSizeExtendFromBoundary = 0;
Mesh.MeshSizeFromPoints = 0;
Mesh.Algorithm = 6;

Physical Curve("boundary", 1) = Boundary{ Surface{1}; };
Physical Surface("domain", 1) = {1};
