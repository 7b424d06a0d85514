// The ball of a radius around 0, cell size growing linearly from the centre to the sphere:
// gmsh -3 ball.geo -setnumber radius 6 -setnumber h 0.8 -setnumber grading 2
SetFactory("OpenCASCADE");
DefineConstant[
  radius = {6.0, Name "Radius"},
  h = {0.8, Name "Cell size at the centre"},
  grading = {2.0, Name "Cell size at the sphere over that at the centre"}
];

Sphere(1) = {0, 0, 0, radius};

Field[1] = MathEval;
Field[1].F = Sprintf("%g + %g * sqrt(x^2 + y^2 + z^2)", h, (grading - 1) * h / radius);
Background Field = 1;
Mesh.MeshSizeExtendFromBoundary = 0;
Mesh.MeshSizeFromPoints = 0;
Mesh.Algorithm = 6;

Physical Surface("boundary", 1) = Boundary{ Volume{1}; };
Physical Volume("domain", 1) = {1};
